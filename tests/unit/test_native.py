# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How a failure is told, where a peer's stop word is here before the peer's record."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pyallreduce.errors import AllReduceAborted, CallRefused
from pyallreduce.failure import Stop
from pyallreduce.native import NativePath
from pyallreduce.reasons import Code

REFUSED_SHAPE = 1 << 7


def record(stop: Stop, code: Code = Code.OK) -> Any:
    theirs = (0, 0, REFUSED_SHAPE, list(Code).index(code))
    return SimpleNamespace(
        state=1 << 8 | stop if stop else 0,
        peer=1,
        block=0,
        phase=1,
        algorithm=1,
        epoch=4,
        waited_ms=0,
        drained=0,
        ours=(4, 1, 0, 0),
        theirs=theirs,
    )


class Records:
    """What every look at the records of two ranks gives; the last one stays."""

    def __init__(self, *looks: list[Any]) -> None:
        self.looks = list(looks)

    def __call__(self) -> list[Any]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


def native(records: Records) -> Any:
    path: Any = object.__new__(NativePath)
    path._exchange = SimpleNamespace(rank=0)
    path._slabs = SimpleNamespace(ended=lambda: (-1, ""))
    path._renew_due = False
    path.aborts = 0
    path._records = records
    return path


def test_a_cause_that_comes_late_is_told() -> None:
    """Rank 0 was stopped by rank 1, whose record is still on its way."""
    early = [record(Stop.PEER), record(Stop.NONE)]
    late = [record(Stop.PEER), record(Stop.REFUSED, Code.STAGE_FAILED)]
    path = native(Records(early, early, late))
    assert isinstance(path._failure(), CallRefused)
    assert path._renew_due, "this rank would not join its peers' new generation"


def test_a_cause_that_never_comes_is_not_waited_for_long() -> None:
    path = native(Records([record(Stop.PEER), record(Stop.NONE)]))
    assert isinstance(path._failure(), AllReduceAborted)
    assert not path._renew_due
