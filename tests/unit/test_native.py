# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How a failure is told, where a peer's stop word is here before the peer's record."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from pyallreduce.config import Config
from pyallreduce.errors import AllReduceAborted, CallRefused
from pyallreduce.failure import Stop
from pyallreduce.native import NativePath
from pyallreduce.reasons import Code

REFUSED_SHAPE = 1 << 7  # csrc/protocol/call.h
TAIL_SHIFT = 8


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


@pytest.mark.parametrize(
    ("patient", "settled", "deadline_ms"), [(0, True, 700), (0, False, 7000), (1, True, 7000)]
)
def test_a_new_generation_is_as_patient_as_the_last(
    patient: int, settled: bool, deadline_ms: int
) -> None:
    path = native(Records([]))
    path._patient, path._settled, path._generation = patient, settled, 2
    path._config = Config(timeout_ms=700)
    path._slabs = mock.Mock()
    path._arm()
    path._slabs.arm.assert_called_once_with(2, deadline_ms)


def test_a_check_settles_though_all_is_quiet() -> None:
    path = native(Records([record(Stop.NONE)]))
    path._patient, path._settled, path._calls, path._config = 0, False, 1, Config()
    path._quiet, path._rank, path._slabs = lambda: True, mock.Mock(), mock.Mock()
    path._slabs.ended.return_value, path._rank.state.return_value = (-1, ""), 0
    path.check()
    assert path._settled


def test_a_call_of_an_earlier_generation_settles_nothing() -> None:
    path = native(Records([record(Stop.NONE)]))
    path._settled, path._calls, path._first_call = False, 1, mock.Mock()
    path._generation, path._slabs, path._step = 1, mock.Mock(), mock.Mock()
    path._slabs.ended.return_value = (-1, "")
    path.renew()
    assert (path._calls, path._first_call, path._settled) == (0, None, False)


@pytest.mark.parametrize("death", [(-1, ""), (1, "rank 1 ended")])
@pytest.mark.parametrize(("vectors", "tail", "nbytes"), [(1, 12, 12), (3, 2, 34), (3, 0, 48)])
def test_an_error_tells_the_bytes_of_the_call(
    vectors: int, tail: int, nbytes: int, death: tuple[int, str]
) -> None:
    """Not those of its vectors, the last of which may be filled in part."""
    waited = record(Stop.DEADLINE)
    waited.ours = (4, vectors, tail << TAIL_SHIFT, 0)
    path = native(Records([waited, record(Stop.NONE)]))
    path._cause = lambda: (path._records(), death)
    error = path._failure()
    assert error.nbytes == nbytes
    assert f"{nbytes} bytes" in str(error)


def idle(path: Any, *answers: Exception | None) -> bool:
    """Whether a device is called idle whose synchronisation answers so; each is asked for once."""
    path.limits = SimpleNamespace(target="cuda")
    path._device, path._waits = 0, True  # a thread of before
    with mock.patch.object(torch.cuda, "synchronize", side_effect=answers) as asked:
        found = path._idle(5.0)
    assert asked.call_count == len(answers)
    return bool(found)


def test_a_device_in_whose_process_another_thread_captures_is_asked_again() -> None:
    captures = RuntimeError("CUDA error: operation not permitted when stream is capturing")
    assert idle(native(Records([])), captures, captures, None)


def test_a_device_whose_context_is_gone_is_idle() -> None:
    assert idle(native(Records([])), RuntimeError("CUDA error: an illegal memory access"))


def test_a_device_is_not_called_idle_by_who_has_no_thread_to_wait() -> None:
    path = native(Records([]))
    none_left = RuntimeError("can't start new thread")
    with mock.patch.object(threading.Thread, "start", side_effect=none_left):
        assert not idle(path)
    assert not path._waits
