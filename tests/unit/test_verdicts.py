# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The joint verdict: one answer on all ranks, whatever the frames are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyallreduce import wire
from pyallreduce.reasons import Code, Reason
from pyallreduce.verdicts import Stage, first_veto, joint_verdict

NONCE, STALE = bytes(range(16)), bytes(16)
STAGE = Stage.RECOVERED


class Everybody:
    """An exchange whose other frames are given."""

    rank = 0

    def __init__(self, *others: bytes) -> None:
        self.others = others
        self.world = 1 + len(others)

    def gather(self, frame: bytes, _step: str) -> list[bytes]:
        return [frame, *self.others]


def frame(stage: int = STAGE, nonce: bytes = NONCE, rank: int = 1, code: Code = Code.OK) -> bytes:
    return wire.encode_verdict(wire.Verdict(stage, code), nonce=nonce, rank=rank, world=2)


def verdict(*others: bytes) -> Reason:
    exchange: Any = Everybody(*others)
    return joint_verdict(exchange, NONCE, STAGE, Reason(Code.OK))


def test_all_well() -> None:
    assert verdict(frame()) == Reason(Code.OK)


@pytest.mark.parametrize(
    "bad",
    [frame(stage=2), frame(nonce=STALE), frame(rank=0), frame()[:-1] + b"?", bytes(2048), b""],
    ids=["stage", "nonce", "rank", "checksum", "zeros", "empty"],
)
def test_what_is_no_verdict_of_this_stage_is_a_veto(bad: bytes) -> None:
    reason = verdict(bad)
    assert reason.code is Code.STAGE_FAILED
    assert reason.detail.startswith("rank 1: ")


def test_the_gravest_veto_is_everybodys() -> None:
    light, grave = Reason(Code.KERNEL_TIMEOUT, "here"), Reason(Code.P2P_CORRUPT, "there")
    told = Reason(Code.P2P_CORRUPT, "rank 2: there")
    assert first_veto([Reason(Code.OK), light, grave]) == told
    assert first_veto([light, light]).detail == "rank 0: here"


reasons = st.lists(st.builds(Reason, st.sampled_from(Code), st.just("why")), min_size=1, max_size=8)


@given(reasons)
def test_any_fault_reports_give_one_verdict(verdicts: list[Reason]) -> None:
    """Every rank hears the same list, so the same answer: OK exactly if all say so, else a veto
    that some rank cast, with its number."""
    reason = first_veto(verdicts)
    vetoes = [(i, r.code) for i, r in enumerate(verdicts) if r.code is not Code.OK]
    if not vetoes:
        assert reason.code is Code.OK
    else:
        rank = int(reason.detail.split(":")[0].removeprefix("rank "))
        assert (rank, reason.code) in vetoes
        assert first_veto([r for r in verdicts if r.code in (Code.OK, reason.code)]).code is (
            reason.code
        )
