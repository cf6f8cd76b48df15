# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Ranks of the host target as threads of this process: a call gives up the GIL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from pyallreduce import _C
from pyallreduce.arrays import DTYPE_CODES
from pyallreduce.policy import AlgorithmName, Limits, plan_for

__all__ = ["ALGORITHMS", "DTYPES", "HostGroup", "aligned", "all_reduce", "on_every_rank"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ALGORITHMS: tuple[AlgorithmName, ...] = ("one_shot", "two_shot")
_DEADLINE_MS = 30_000
_SENTINEL = 0xFF
Result = TypeVar("Result")


@dataclass
class HostGroup:
    """Slabs, record pages and compiled ranks of one communicator."""

    world: int
    limits: Limits
    ranks: list[_C.HostRank]
    memory: list[_C.SharedMemory]

    @classmethod
    @contextmanager
    def open(cls, world: int, slab_bytes: int = 2 << 20) -> Iterator[HostGroup]:
        layout = _C.Layout(world, slab_bytes)
        slabs = [_C.SharedMemory(layout.bytes) for _ in range(world)]
        pages = [_C.SharedMemory(4096) for _ in range(world)]
        for slab, page in zip(slabs, pages, strict=True):
            for _, offset, size, armed in layout.regions():
                slab.fill(offset, size, _SENTINEL if armed else 0)
            slab.write(layout.control, (1 << 32).to_bytes(8, "little"))  # no stop, generation 1
            _C.arm_record(page, 1, _DEADLINE_MS, _DEADLINE_MS)
        addresses = [slab.address for slab in slabs]
        ranks = [
            _C.HostRank(rank, layout, addresses, page.address) for rank, page in enumerate(pages)
        ]
        group = cls(world, Limits(world, "host", 8), ranks, [*slabs, *pages])
        try:
            yield group
        finally:
            group.ranks.clear()
            for one in group.memory:
                one.close()

    def call(
        self, rank: int, x: torch.Tensor, out: torch.Tensor, algorithm: AlgorithmName = "auto"
    ) -> None:
        """One rank's part of one call, in this thread."""
        plan = plan_for(x.numel() * x.element_size(), self.limits, algorithm)
        code = DTYPE_CODES[x.dtype]
        launch = self.ranks[rank].launch(x.numel(), code, plan.algorithm, plan.blocks, plan.lanes)
        state = launch(x.data_ptr(), out.data_ptr(), 0, 0)
        assert state == 0, f"rank {rank} ended with {state:#x}"


def on_every_rank(world: int, body: Callable[[int], Result]) -> list[Result]:
    """What `body(rank)` gives on a thread of each rank."""
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(body, range(world)))


def aligned(x: torch.Tensor) -> torch.Tensor:
    """A copy at a multiple of 16 bytes, as the communicator gives it to a launch."""
    room = torch.empty(x.numel() + 16, dtype=x.dtype)
    start = -(room.data_ptr() // x.element_size()) % (16 // x.element_size())
    copy = room[start : start + x.numel()]
    copy.copy_(x)
    return copy


def all_reduce(
    group: HostGroup, inputs: Sequence[torch.Tensor], algorithm: AlgorithmName = "auto"
) -> list[torch.Tensor]:
    """Every rank's result of one call."""

    def body(rank: int) -> torch.Tensor:
        x = aligned(inputs[rank])
        out = aligned(torch.full_like(x, 7))
        group.call(rank, x, out, algorithm)
        return out

    return on_every_rank(group.world, body)
