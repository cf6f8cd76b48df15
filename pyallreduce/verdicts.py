# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The joint verdict: everybody says how a step went, and everybody hears the same answer."""

from __future__ import annotations

from pyallreduce import wire
from pyallreduce.errors import WireError
from pyallreduce.exchange import Exchange
from pyallreduce.reasons import Code, Reason

__all__ = ["first_veto", "joint_verdict"]


def joint_verdict(exchange: Exchange, nonce: bytes, stage: int, mine: Reason) -> Reason:
    """Gather one verdict of each rank; the lowest rank's veto is everybody's, or OK.

    Raises:
        ExchangeTimeout: some rank did not take part in time.
    """
    verdict = wire.Verdict(stage, mine.code, mine.detail)
    frame = wire.encode_verdict(verdict, nonce=nonce, rank=exchange.rank, world=exchange.world)
    frames = exchange.gather(frame, f"verdict of stage {stage}")
    return first_veto([_read(exchange, nonce, stage, r, f) for r, f in enumerate(frames)])


def first_veto(verdicts: list[Reason]) -> Reason:
    """The veto of the lowest rank, with that rank's number, or OK."""
    for rank, reason in enumerate(verdicts):
        if reason.code is not Code.OK:
            detail = f"rank {rank}: {reason.detail}" if reason.detail else f"rank {rank}"
            return Reason(reason.code, detail)
    return Reason(Code.OK)


def _read(exchange: Exchange, nonce: bytes, stage: int, rank: int, frame: bytes) -> Reason:
    try:
        verdict = wire.decode(frame, wire.Verdict, nonce=nonce, rank=rank, world=exchange.world)
    except WireError as error:
        return Reason(Code.STAGE_FAILED, str(error))
    if verdict.stage != stage:
        return Reason(Code.STAGE_FAILED, f"it is at stage {verdict.stage}, not {stage}")
    return verdict.reason
