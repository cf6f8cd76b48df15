# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""gloo through torch.distributed, the peer on the CPU."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pyallreduce.bench.peers.base import Arena, Peer, Place

__all__ = ["make"]


def make(algorithm: str, place: Place) -> Peer:
    del algorithm
    return Gloo(place)


class Gloo(Peer):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._arena = Arena(torch.empty(place.arena_bytes(), dtype=torch.uint8))

    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        return self._arena.views(count, elements, dtype)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(x)
        return x
