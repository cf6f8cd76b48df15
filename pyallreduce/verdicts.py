# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The joint verdict: everybody says how a step went, and everybody hears the same answer."""

from __future__ import annotations

import enum
import logging

from pyallreduce import wire
from pyallreduce.errors import WireError
from pyallreduce.exchange import Exchange
from pyallreduce.reasons import Code, Reason

__all__ = ["Stage", "first_veto", "joint_verdict", "unforeseen"]

logger = logging.getLogger(__name__)


class Stage(enum.IntEnum):
    """What a verdict is on. Frames carry the number."""

    DRAINED = 1  # of a new generation
    ARMED = 2
    RECOVERED = 3
    OPENED = 11  # of the start-up
    EDGES = 12
    CALLS = 13
    CLOSED = 14


# What the live checks say, from the cause to what may be its consequence.
_BY_WEIGHT = (
    Code.P2P_CORRUPT,
    Code.P2P_PRIVATE_MIRROR,
    Code.P2P_WRITE_LOST,
    Code.KERNEL_MISMATCH,
)


def joint_verdict(exchange: Exchange, nonce: bytes, stage: Stage, mine: Reason) -> Reason:
    """Gather one verdict of each rank; the gravest veto is everybody's, or OK.

    Raises:
        ExchangeTimeout: some rank did not take part in time.
    """
    verdict = wire.Verdict(stage, mine.code, mine.detail)
    frame = wire.encode_verdict(verdict, nonce=nonce, rank=exchange.rank, world=exchange.world)
    frames = exchange.gather(frame, f"verdict on {stage.name.lower()}")
    return first_veto([_read(exchange, nonce, stage, r, f) for r, f in enumerate(frames)])


def first_veto(verdicts: list[Reason]) -> Reason:
    """The veto that says most; of equal ones that of the lowest rank, with its number; or OK.

    One broken edge makes both of its ends fail, and only one of them knows what is broken.
    """
    vetoes = [(rank, r) for rank, r in enumerate(verdicts) if r.code is not Code.OK]
    if not vetoes:
        return Reason(Code.OK)
    rank, reason = min(vetoes, key=lambda veto: (_rank_of(veto[1].code), veto[0]))
    detail = f"rank {rank}: {reason.detail}" if reason.detail else f"rank {rank}"
    return Reason(reason.code, detail)


def unforeseen(rank: int, error: Exception) -> Reason:
    """What an error that nobody foresaw is in a verdict: a rank that left would be waited for.

    Where it came from goes to this rank's log, which is where the reason's remedy points.
    """
    logger.warning("rank %d: a step that all ranks take together failed", rank, exc_info=error)
    return Reason(Code.STAGE_FAILED, f"{type(error).__name__}: {error}")


def _rank_of(code: Code) -> int:
    return _BY_WEIGHT.index(code) if code in _BY_WEIGHT else len(_BY_WEIGHT)


def _read(exchange: Exchange, nonce: bytes, stage: Stage, rank: int, frame: bytes) -> Reason:
    try:
        verdict = wire.decode(frame, wire.Verdict, nonce=nonce, rank=rank, world=exchange.world)
    except WireError as error:
        return Reason(Code.STAGE_FAILED, str(error))
    if verdict.stage != stage:
        return Reason(Code.STAGE_FAILED, f"it is at stage {verdict.stage}, not {stage}")
    return verdict.reason
