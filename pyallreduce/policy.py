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

from pyallreduce import shipped
from pyallreduce.facts import Target
from pyallreduce.table import MAX_LANES, Entry, Table

__all__ = [
    "ALGORITHMS",
    "ALGORITHM_NAMES",
    "ONE_SHOT",
    "TWO_SHOT",
    "Limits",
    "Plan",
    "full_grid",
    "grid_of",
    "left_to_nccl",
    "max_lanes",
    "plan_for",
    "table_for",
    "table_lines",
]

ONE_SHOT, TWO_SHOT = 1, 2  # csrc/protocol/call.h, enum Algorithm
AlgorithmName = Literal["auto", "one_shot", "two_shot"]
ALGORITHM_NAMES: dict[int, AlgorithmName] = {ONE_SHOT: "one_shot", TWO_SHOT: "two_shot"}
ALGORITHMS = tuple(ALGORITHM_NAMES.values())
_CODES: dict[str, int] = {name: code for code, name in ALGORITHM_NAMES.items()}

_VECTOR = 16  # bytes


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
    """What all ranks agreed on: world size, target, the most blocks that are co-resident, the tuned
    table, None for the shipped one, and the vectors that a block's one-shot mailbox holds, 0 for
    any number."""

    world: int
    target: Target
    blocks: int
    table: Table | None = None
    tile: int = 0


def table_for(limits: Limits) -> Table:
    """The table in force."""
    return _shipped(limits) if limits.table is None else limits.table


def max_lanes(world: int) -> int:
    """The most data lanes of a block: csrc/protocol/target.h."""
    return MAX_LANES if world <= 3 else 480


def left_to_nccl(nbytes: int, limits: Limits) -> bool:
    """Whether the table gives a message of this size to NCCL. Not to be asked where one order of
    summation is promised (`Config.batch_invariant`)."""
    return table_for(limits).entry(nbytes).algorithm == "nccl"


def plan_for(nbytes: int, limits: Limits, algorithm: AlgorithmName = "auto") -> Plan:
    """The plan for a message of `nbytes` bytes; `algorithm` other than "auto" forces one.

    Where the table says NCCL, this is the launch of the shipped one, for those who may not follow.
    """
    entry = table_for(limits).entry(nbytes)
    if entry.algorithm == "nccl":
        entry = _shipped(limits).entry(nbytes)
    if algorithm != "auto" and algorithm != entry.algorithm:
        entry = Entry(entry.up_to, algorithm)
    code = _CODES[entry.algorithm]
    owners = 1 if code == ONE_SHOT else limits.world
    vectors = max(1, -(-nbytes // (_VECTOR * owners)))
    if limits.target == "host":
        most = min(entry.blocks or 8, limits.blocks)
        return Plan(code, min(-(-vectors // 1024), most), 64)
    most = min(entry.blocks or limits.blocks, limits.blocks)
    widest = max_lanes(limits.world)
    lanes = min(entry.lanes, widest) or _lanes(vectors, most, widest)
    return Plan(code, grid_of(code, vectors, lanes, most, limits), lanes)


def grid_of(code: int, vectors: int, lanes: int, most: int, limits: Limits) -> int:
    """The blocks of a launch on GPUs: `most` at most, or one-shot's would not hold the message."""
    if code != ONE_SHOT:
        return min(-(-vectors // lanes), most)
    blocks = full_grid(vectors, lanes, most)
    if limits.tile and blocks * limits.tile < vectors:
        return min(-(-vectors // lanes), limits.blocks)
    return blocks


def full_grid(vectors: int, lanes: int, most: int) -> int:
    """The fewest blocks that need no more steps than `most` would: all steps are full then. A last
    one with few lanes at work costs as much as any other (bench/NOTES.md, entry 40)."""
    steps = -(-vectors // (most * lanes))
    return -(-vectors // (steps * lanes))


def table_lines(limits: Limits) -> tuple[str, ...]:
    """The table in force, for people: what it is, then a line an entry."""
    table = table_for(limits)
    return (
        f"{table.source} table for {limits.world} ranks, at most {limits.blocks} blocks",
        *(_line(entry, last=entry is table.entries[-1]) for entry in table.entries),
    )


def _shipped(limits: Limits) -> Table:
    return shipped.HOST if limits.target == "host" else shipped.GPU[limits.world]


def _line(entry: Entry, *, last: bool) -> str:
    sizes = "above" if last else f"up to {entry.up_to} bytes"
    blocks = f", at most {entry.blocks} blocks" if entry.blocks else ""
    lanes = f" of {entry.lanes} lanes" if entry.lanes else ""
    return f"{entry.algorithm} {sizes}{blocks}{lanes}"


def _lanes(vectors: int, blocks: int, widest: int) -> int:
    """Small blocks start sooner; few larger ones finish sooner. Beyond one vector a lane of the
    full grid, every step of a block is equally long."""
    if vectors <= 128 * 32:
        return 128
    if vectors <= 256 * blocks:
        return 256
    a_block = -(-vectors // blocks)
    steps = -(-a_block // widest)
    return -(-a_block // (32 * steps)) * 32
