# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""pyallreduce: its default dispatch, or one algorithm forced; in place on ordinary tensors."""

from __future__ import annotations

import torch

from pyallreduce import Communicator
from pyallreduce.bench.peers.base import Arena, Peer, Place
from pyallreduce.errors import BackendUnavailable
from pyallreduce.policy import AlgorithmName

__all__ = ["make"]

_NAMES: dict[str, AlgorithmName] = {"one_shot": "one_shot", "two_shot": "two_shot"}


def make(algorithm: str, place: Place) -> Peer:
    return Ours(place, _NAMES.get(algorithm, "auto"))


class Ours(Peer):
    def __init__(self, place: Place, algorithm: AlgorithmName) -> None:
        super().__init__(place)
        self._comm = Communicator(device=place.device)
        if self._comm.decision.backend != "native":
            raise BackendUnavailable(self._comm.decision.reason)
        self.exact = algorithm != "auto" or self._comm.one_order
        self._algorithm = algorithm
        self._forced = None if algorithm == "auto" else algorithm
        self._arena = Arena(
            torch.empty(place.arena_bytes(), dtype=torch.uint8, device=place.device)
        )

    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        return self._arena.views(count, elements, dtype)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self._comm.all_reduce(x, out=x, algorithm=self._forced)
        return x

    def check(self) -> None:
        self._comm.check()

    def detail(self, nbytes: int) -> str:
        plan = self._comm.plan_of(nbytes, self._algorithm)
        return "nccl" if self._left(nbytes) else f"{plan.name} {plan.blocks}x{plan.lanes}"

    def blocks(self, nbytes: int) -> int | None:
        return None if self._left(nbytes) else self._comm.plan_of(nbytes, self._algorithm).blocks

    def _left(self, nbytes: int) -> bool:
        return self._algorithm == "auto" and self._comm.plan(nbytes) == "nccl"

    def close(self) -> None:
        self._comm.close()
