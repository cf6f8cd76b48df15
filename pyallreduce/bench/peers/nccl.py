# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""NCCL through torch.distributed: on ordinary memory, or on memory registered as a symmetric
window."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pyallreduce.bench.peers.base import Arena, Peer, Place

__all__ = ["make"]


def make(algorithm: str, place: Place) -> Peer:
    return Nccl(place, symmetric=algorithm == "symmetric")


class Nccl(Peer):
    def __init__(self, place: Place, *, symmetric: bool) -> None:
        super().__init__(place)
        dist.all_reduce(torch.zeros(1, device=place.device))  # makes its communicator
        torch.cuda.synchronize(place.device)
        self._pool: Any = None
        self._backend: Any = None
        nbytes = place.arena_bytes()
        if symmetric:
            self._arena = Arena(self._window(nbytes))
        else:
            self._arena = Arena(torch.empty(nbytes, dtype=torch.uint8, device=place.device))

    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        return self._arena.views(count, elements, dtype)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(x)
        return x

    def close(self) -> None:
        if self._pool is not None:
            torch.cuda.synchronize(self.place.device)
            self._backend.deregister_mem_pool(self._pool)

    def _window(self, nbytes: int) -> torch.Tensor:
        """Memory of NCCL's own allocator, one segment, registered by all ranks together."""
        world: Any = dist.group.WORLD
        self._backend = world._get_backend(self.place.device)
        self._pool = torch.cuda.MemPool(self._backend.mem_allocator)
        with torch.cuda.use_mem_pool(self._pool):
            memory = torch.empty(nbytes, dtype=torch.uint8, device=self.place.device)
        self._backend.register_mem_pool(self._pool, symm=True)
        torch.cuda.synchronize(self.place.device)
        return memory
