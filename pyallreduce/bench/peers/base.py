# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What `bench --compare` asks of a backend: buffers of its own kind, and a call on them."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pyallreduce.bench.options import Mode

__all__ = ["Arena", "Peer", "PingPong", "Place", "stride_of"]

_ALIGNMENT = 256  # bytes
MIB = 1 << 20


@dataclass(frozen=True)
class Place:
    """Where a backend is set up.

    `cells` are the (bytes of a message, buffers at once) that it will be asked for.
    """

    rank: int
    world: int
    device: torch.device
    cells: tuple[tuple[int, int], ...]

    def largest(self, limit: int | None = None) -> int:
        """Bytes of the largest message, of those up to `limit`."""
        return max((n for n, _ in self.cells if limit is None or n <= limit), default=0)

    def arena_bytes(self, limit: int | None = None) -> int:
        """What all buffers of one cell take together, at most."""
        within = [(n, count) for n, count in self.cells if limit is None or n <= limit]
        return max((stride_of(n) * count for n, count in within), default=0)


def stride_of(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class Arena:
    """One allocation that lives as long as its backend; each cell's buffers are cut from its start.

    A backend that registers memory does so once, and never sees an address change its owner.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory

    def views(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        nbytes = elements * dtype.itemsize
        starts = range(0, count * stride_of(nbytes), stride_of(nbytes))
        return [self.memory[at : at + nbytes].view(dtype) for at in starts]


class Peer(ABC):
    """One row of the comparison: one algorithm of one backend.

    Every rank makes it and calls it in the same order. `exact` promises the rank-order sum bit for
    bit. `limit` is the largest message in bytes, None for any.
    """

    exact = False
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32)
    limit: int | None = None

    def __init__(self, place: Place) -> None:
        self.place = place
        self.captures = False  # whether calls are being captured

    def serves(self, nbytes: int, dtype: torch.dtype, mode: Mode) -> bool:
        """Whether it can run this cell at all."""
        fits = self.limit is None or nbytes <= self.limit
        graphs = mode == "eager" or self.place.device.type == "cuda"
        return fits and graphs and dtype in self.dtypes

    @abstractmethod
    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        """Tensors that `all_reduce` takes; those of an earlier call are not used any more."""

    @abstractmethod
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in `x` itself or in a tensor that `all_reduce` takes as well."""

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Around the capture of a graph; it may be replayed once this is left, by all ranks."""
        self.captures = True
        try:
            yield
        finally:
            self.captures = False
        self.captured()

    def captured(self) -> None:
        """A graph was captured: register its addresses, where that is the backend's way."""
        return

    def check(self) -> None:
        """Raise what went wrong in earlier calls."""
        return

    def detail(self, nbytes: int) -> str:
        """What carries a message of this size."""
        del nbytes
        return ""

    def blocks(self, nbytes: int) -> int | None:
        """SMs that a message of this size occupies, where that is known."""
        del nbytes
        return None

    def close(self) -> None:
        """Let go; every rank does it at the same point."""
        return


class PingPong(Peer):
    """A backend that sums out of place: the result of a buffer is another one, and the other way
    round, so that dependent calls go back and forth."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._partners: dict[int, torch.Tensor] = {}

    @abstractmethod
    def arenas(self) -> tuple[Arena, Arena]: ...

    @abstractmethod
    def reduce_into(self, x: torch.Tensor, out: torch.Tensor) -> None: ...

    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        here, there = (arena.views(count, elements, dtype) for arena in self.arenas())
        pairs = [*zip(here, there, strict=True), *zip(there, here, strict=True)]
        self._partners = {x.data_ptr(): out for x, out in pairs}
        return here

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        out = self._partners[x.data_ptr()]
        self.reduce_into(x, out)
        return out
