# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Which algorithm and launch shape carries a message.

Every function here depends on its arguments alone, and those are the same on all ranks: bytes,
world size, and numbers agreed at start-up. A rank that chose by anything local (alignment,
occupancy, a clock) would leave its peers waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyallreduce.facts import Target

__all__ = ["ALGORITHM_NAMES", "ONE_SHOT", "TWO_SHOT", "Limits", "Plan", "plan_for", "table_lines"]

ONE_SHOT, TWO_SHOT = 1, 2  # csrc/protocol/call.h, enum Algorithm
ALGORITHM_NAMES = {ONE_SHOT: "one_shot", TWO_SHOT: "two_shot"}
AlgorithmName = Literal["auto", "one_shot", "two_shot"]

_VECTOR = 16  # bytes
_MAX_LANES = 480  # csrc/protocol/target.h
_KIB = 1024

# Largest message in bytes that one-shot carries on a GPU. Measured for 2 and 4 ranks on H100s with
# a prototype of the same algorithms; the others from the model: two-shot saves (N-1)(1-2/N) of the
# message on a wire of 365 GB/s and costs about 1.3 us for its second hop.
_ONE_SHOT_LIMIT = {
    2: 2048 * _KIB,
    3: 512 * _KIB,
    4: 256 * _KIB,
    5: 192 * _KIB,
    6: 128 * _KIB,
    7: 96 * _KIB,
    8: 64 * _KIB,
}
# On the host a hop is a context switch or two: one-shot until its copies outweigh that.
_ONE_SHOT_LIMIT_HOST = 64 * _KIB


@dataclass(frozen=True)
class Plan:
    """One launch: algorithm code, blocks of the grid, data lanes of a block."""

    algorithm: int
    blocks: int
    lanes: int

    @property
    def name(self) -> str:
        return ALGORITHM_NAMES[self.algorithm]


@dataclass(frozen=True)
class Limits:
    """What all ranks agreed on: world size, target, and the most blocks that are co-resident."""

    world: int
    target: Target
    blocks: int


def plan_for(nbytes: int, limits: Limits, algorithm: AlgorithmName = "auto") -> Plan:
    """The plan for a message of `nbytes` bytes; `algorithm` other than "auto" forces one."""
    code = _algorithm(nbytes, limits, algorithm)
    owners = 1 if code == ONE_SHOT else limits.world
    vectors = -(-nbytes // (_VECTOR * owners))
    if limits.target == "host":
        lanes = 64
        return Plan(code, _clamp(-(-vectors // 1024), 1, min(8, limits.blocks)), lanes)
    lanes = _lanes(vectors, limits.blocks)
    return Plan(code, _clamp(-(-vectors // lanes), 1, limits.blocks), lanes)


def table_lines(limits: Limits) -> tuple[str, ...]:
    """The table in force, for people."""
    edge = _limit(limits)
    return (
        f"one_shot up to {edge} bytes, two_shot above",
        f"at most {limits.blocks} blocks of 128 to 480 lanes",
    )


def _algorithm(nbytes: int, limits: Limits, forced: AlgorithmName) -> int:
    if forced != "auto":
        return ONE_SHOT if forced == "one_shot" else TWO_SHOT
    return ONE_SHOT if nbytes <= _limit(limits) else TWO_SHOT


def _limit(limits: Limits) -> int:
    return _ONE_SHOT_LIMIT_HOST if limits.target == "host" else _ONE_SHOT_LIMIT[limits.world]


def _lanes(vectors: int, blocks: int) -> int:
    """Small blocks start sooner; few larger ones finish sooner. Beyond one vector a lane of the
    full grid, every step of a block is equally long."""
    if vectors <= 128 * 32:
        return 128
    if vectors <= 256 * blocks:
        return 256
    a_block = -(-vectors // blocks)
    steps = -(-a_block // _MAX_LANES)
    return -(-a_block // (32 * steps)) * 32


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
