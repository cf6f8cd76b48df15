# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""torch's symmetric-memory all-reduces. They sum in the tensors' dtype and know no float16."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pyallreduce.bench.peers.base import MIB, Arena, Peer, PingPong, Place
from pyallreduce.bench.peers.symmetric import Symmetric

__all__ = ["make"]

_DTYPES = (torch.bfloat16, torch.float32)


def make(algorithm: str, place: Place) -> Peer:
    return OneShot(place) if algorithm == "one_shot" else TwoShot(place)


def _group_name() -> str:
    world: Any = dist.group.WORLD
    return str(world.group_name)


class OneShot(PingPong):
    """Peers read the input while this rank writes its result: in place would be a race."""

    dtypes = _DTYPES
    limit = 16 * MIB  # several times slower than the others above

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        half = place.arena_bytes(self.limit)
        self._both = Symmetric(2 * half, place.device)
        self._halves = Arena(self._both.memory[:half]), Arena(self._both.memory[half:])
        self._name = _group_name()
        self._run: Any = torch.ops.symm_mem.one_shot_all_reduce_out

    def arenas(self) -> tuple[Arena, Arena]:
        return self._halves

    def reduce_into(self, x: torch.Tensor, out: torch.Tensor) -> None:
        self._run(x, "sum", self._name, out)


class TwoShot(Peer):
    dtypes = _DTYPES

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._memory = Symmetric(place.arena_bytes(), place.device)
        self._arena = Arena(self._memory.memory)
        self._name = _group_name()
        self._run: Any = torch.ops.symm_mem.two_shot_all_reduce_

    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        return self._arena.views(count, elements, dtype)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self._run(x, "sum", self._name)
        return x
