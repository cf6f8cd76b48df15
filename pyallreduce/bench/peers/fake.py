# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Backends for the tests of the harness: one that works, one that never returns, one that raises,
and one whose sums are wrong."""

from __future__ import annotations

import threading

import torch
import torch.distributed as dist

from pyallreduce.bench.peers.base import Arena, Peer, Place

__all__ = ["make"]


def make(algorithm: str, place: Place) -> Peer:
    return Fake(place, algorithm)


class Fake(Peer):
    def __init__(self, place: Place, behaviour: str) -> None:
        super().__init__(place)
        self._behaviour = behaviour
        self._arena = Arena(
            torch.empty(place.arena_bytes(), dtype=torch.uint8, device=place.device)
        )

    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        return self._arena.views(count, elements, dtype)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self._behaviour == "raises":
            message = "this backend always fails"
            raise RuntimeError(message)
        if self._behaviour == "hangs":
            threading.Event().wait()
        dist.all_reduce(x)
        if self._behaviour == "wrong":
            x[-1] += 1000
        return x
