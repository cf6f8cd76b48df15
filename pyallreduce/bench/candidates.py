# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The race between launch shapes: for each size every algorithm, blocks and lanes worth trying.

`pyallreduce tune` and bench/sweep.py share this. Which candidates run, and in which order, follows
from what all ranks agree on, so that all make the same calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pyallreduce import Communicator
from pyallreduce.bench import timing
from pyallreduce.bench.floor import algorithm_floor_us, floor_us
from pyallreduce.bench.options import Mode, default_calls
from pyallreduce.check.cases import DTYPES
from pyallreduce.policy import ALGORITHM_NAMES, Limits, Plan, grid_of, max_lanes
from pyallreduce.worker import Context

__all__ = ["LANES", "Outcome", "Race", "candidates", "measure", "run_rank", "sizes_between"]

LANES = (32, 64, 96, 128, 256, 352, 480, 512)
# Blocks this small are worth their time where the grid takes the message in one step.
_SMALL = 64
_HOST_LANES = (64,)
_VECTOR = 16  # bytes
_DIVISORS = (1, 4 / 3, 2, 4)  # of the largest grid that a message can fill
# An algorithm whose floor is this much above the other's is not worth its time.
_HOPELESS = 1.6


@dataclass(frozen=True)
class Race:
    """What is raced: sizes from `min_bytes` to `max_bytes`, each twice the one before.

    `calls` all-reduces make one sample (None: as `bench` does), of which the median of `samples`
    counts.
    """

    min_bytes: int
    max_bytes: int
    samples: int = 20
    warmup: int = 2
    calls: int | None = None
    dtype: str = "bfloat16"

    def sizes(self) -> list[int]:
        return sizes_between(self.min_bytes, self.max_bytes)


@dataclass(frozen=True)
class Outcome:
    """One candidate of one size: µs of a call, median of the slowest rank, and whether the sums
    were right."""

    bytes: int
    algorithm: str
    blocks: int
    lanes: int
    us: float
    us_p99: float
    floor: float
    right: bool


@dataclass(frozen=True)
class Fixed:
    """One plan, as a backend of `timing`; exempt from every dispatch."""

    comm: Communicator
    plan: Plan
    name: str = "pyallreduce"
    exact: bool = True

    @property
    def algorithm(self) -> str:
        return self.plan.name

    @property
    def capturable(self) -> bool:
        return self.comm.device.type == "cuda"

    def all_reduce(self, x: torch.Tensor) -> None:
        self.comm.run_plan(x, self.plan)

    def detail(self, nbytes: int) -> str:
        del nbytes
        return f"{self.plan.name} {self.plan.blocks}x{self.plan.lanes}"


def sizes_between(low: int, high: int) -> list[int]:
    """Powers of two times `low`, up to `high`."""
    sizes = []
    while low <= high:
        sizes.append(low)
        low *= 2
    return sizes


def candidates(nbytes: int, limits: Limits) -> list[Plan]:
    """The plans worth trying for a message of this size, the same list on all ranks."""
    lanes = _HOST_LANES if limits.target == "host" else LANES
    return [
        Plan(code, blocks, width)
        for code in ALGORITHM_NAMES
        if not _hopeless(nbytes, limits.world, code)
        for width in _useful(lanes, _vectors(nbytes, limits.world, code), limits)
        for blocks in _grids(_vectors(nbytes, limits.world, code), width, limits, code)
    ]


def measure(
    comm: Communicator, context: Context, plan: Plan, nbytes: int, race: Race
) -> tuple[timing.Timing, bool]:
    """Time one plan; whether all sums were right here. Every rank must come with the same
    arguments."""
    dtype = DTYPES[race.dtype]
    x = timing.zero_sum(context.rank, context.world, nbytes // dtype.itemsize, dtype, comm.device)
    mode: Mode = "graph" if comm.device.type == "cuda" else "eager"
    calls = race.calls or default_calls(nbytes, mode, comm.device)
    timed = timing.time_calls(Fixed(comm, plan), x, mode, calls, race.warmup, race.samples)
    comm.check()
    return timed, not bool(x.any())


def run_rank(context: Context, options: Mapping[str, Any]) -> None:
    """Race all candidates; rank 0 says {"start": ...}, then {"size": ..., "of": ...} before and
    {"outcomes": [...]} after each size."""
    race = Race(**options)
    device = torch.device("cpu") if context.gpu is None else torch.device("cuda", context.gpu)
    with Communicator(device=device) as comm:
        if context.rank == 0:
            decision = comm.decision
            context.say({"start": {"backend": decision.backend, "reason": str(decision.reason)}})
        if comm.decision.backend != "native":
            return
        for nbytes in race.sizes():
            plans = candidates(nbytes, comm.limits)
            if context.rank == 0:
                context.say({"size": nbytes, "of": len(plans)})
            outcomes = [asdict(o) for o in _outcomes(comm, context, plans, nbytes, race)]
            if context.rank == 0:
                context.say({"outcomes": outcomes})


def _outcomes(
    comm: Communicator, context: Context, plans: Sequence[Plan], nbytes: int, race: Race
) -> Iterator[Outcome]:
    floor = round(floor_us(nbytes, context.world), 3)
    for plan in plans:
        timed, right = measure(comm, context, plan, nbytes, race)
        yield Outcome(
            bytes=nbytes,
            algorithm=plan.name,
            blocks=plan.blocks,
            lanes=plan.lanes,
            us=round(timed.us, 3),
            us_p99=round(timed.us_p99, 3),
            floor=floor,
            right=right,
        )


def _vectors(nbytes: int, world: int, code: int) -> int:
    """16-byte vectors of one owner's part."""
    owners = 1 if ALGORITHM_NAMES[code] == "one_shot" else world
    return max(1, -(-nbytes // (_VECTOR * owners)))


def _useful(lanes: Sequence[int], vectors: int, limits: Limits) -> list[int]:
    """The widths up to the first one at which a single block holds the message, but no small ones
    that would take several steps."""
    enough = [width for width in lanes if width >= vectors]
    return [
        width
        for width in lanes
        if width <= min([*enough[:1], max_lanes(limits.world)])
        and (not _small(width, limits) or vectors <= width * limits.blocks)
    ]


def _small(lanes: int, limits: Limits) -> bool:
    return lanes <= _SMALL and limits.target == "cuda"


def _grids(vectors: int, lanes: int, limits: Limits, code: int) -> list[int]:
    """From one vector a lane, or the largest grid, down to a quarter of that; as dispatch would
    launch them."""
    most = min(-(-vectors // lanes), limits.blocks)
    divisors = _DIVISORS[:1] if _small(lanes, limits) else _DIVISORS
    grids = {max(1, round(most / divisor)) for divisor in divisors}
    if limits.target == "cuda":
        grids = {grid_of(code, vectors, lanes, blocks, limits) for blocks in grids}
    return sorted(grids, reverse=True)


def _hopeless(nbytes: int, world: int, code: int) -> bool:
    name = ALGORITHM_NAMES[code]
    floor = algorithm_floor_us(nbytes, world, "one_shot" if name == "one_shot" else "two_shot")
    return floor > _HOPELESS * floor_us(nbytes, world)
