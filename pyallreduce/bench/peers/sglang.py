# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's all-reduce kernels of 2026: one-shot push, and two-shot pull.

The push returns a new tensor. The pull works in place on its caller's memory in a graph, where the
kernel finds everybody's addresses in a table; eager it copies to and from a workspace.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from pyallreduce.bench.options import Mode
from pyallreduce.bench.peers.base import MIB, Arena, Peer, Place, stride_of
from pyallreduce.bench.peers.symmetric import Symmetric

__all__ = ["build", "make"]

_PULL_BLOCKS = 64  # SGLang's own choice for Hopper
_SEMAPHORE_BYTES = 128
_STAGED = 16 * MIB  # the largest eager pull


def make(algorithm: str, place: Place) -> Peer:
    return OneShotPush(place) if algorithm == "one_shot_push" else TwoShotPull(place)


def build(world: int, dtypes: Sequence[torch.dtype]) -> None:
    kernels = _kernels()
    kernels._init_communicator()
    for dtype in dtypes:
        kernels.get_all_reduce_module(dtype, world)


def _kernels() -> Any:
    return importlib.import_module("sglang.kernels.ops.communication.all_reduce")


class OneShotPush(Peer):
    limit = 16 * MIB

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        kernels = _kernels()
        slots, slot = 2 * place.world, stride_of(place.largest(self.limit))
        self._memory = Symmetric(slots * slot, place.device)
        # The grid is as large as this counter, and must stay so.
        blocks = torch.cuda.get_device_properties(place.device).multi_processor_count
        self._counter = torch.zeros(blocks, 4, dtype=torch.uint8, device=place.device)
        plane = kernels.PushPlane(
            place.rank,
            place.world,
            workspaces=[memory.view(slots, slot) for memory in self._memory.everybodys],
            counter=self._counter,
        )
        torch.cuda.synchronize(place.device)
        self._comm = kernels.Communicator(push=plane)
        self._run = kernels.custom_all_reduce
        self._push = kernels.AllReduceAlgo.ONE_SHOT_PUSH
        self._blocks = blocks
        self._arena = Arena(
            torch.empty(place.arena_bytes(self.limit), dtype=torch.uint8, device=place.device)
        )

    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        return self._arena.views(count, elements, dtype)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._run(self._comm, x, self._push)
        return result

    def blocks(self, nbytes: int) -> int | None:
        del nbytes
        return self._blocks


class TwoShotPull(Peer):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        kernels = _kernels()
        semaphores = _PULL_BLOCKS * _SEMAPHORE_BYTES
        self._staged = place.largest(_STAGED) or _SEMAPHORE_BYTES
        self._memory = Symmetric(semaphores + stride_of(self._staged), place.device)
        plane = kernels.PullPlane(
            place.rank,
            place.world,
            workspaces=self._memory.of_each(semaphores, stride_of(self._staged)),
            semaphores=[
                part.view(_PULL_BLOCKS, _SEMAPHORE_BYTES)
                for part in self._memory.of_each(0, semaphores)
            ],
        )
        self._comm = kernels.Communicator(pull=plane)
        self._run = kernels.custom_all_reduce
        self._pull = kernels.AllReduceAlgo.TWO_SHOT_PULL
        self._users = Symmetric(place.arena_bytes(), place.device)
        self._arena = Arena(self._users.memory)
        # Address here to the row of everybody's addresses, which a captured kernel reads.
        self._rows: dict[int, torch.Tensor] = {}

    def serves(self, nbytes: int, dtype: torch.dtype, mode: Mode) -> bool:
        return super().serves(nbytes, dtype, mode) and (mode != "eager" or nbytes <= self._staged)

    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        views = self._arena.views(count, elements, dtype)
        base = self._users.memory.data_ptr()
        for view in views:
            if view.data_ptr() not in self._rows:
                start = view.data_ptr() - base
                everybody = [memory.data_ptr() + start for memory in self._users.everybodys]
                row = torch.tensor(everybody, dtype=torch.uint64, device=self.place.device)
                self._rows[view.data_ptr()] = row
        torch.cuda.synchronize(self.place.device)
        return views

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if not self.captures:
            staged: torch.Tensor = self._run(self._comm, x, self._pull)
            return staged
        self._run(self._comm, x, self._pull, graph_params=self._rows[x.data_ptr()])
        return x

    def blocks(self, nbytes: int) -> int | None:
        del nbytes
        return _PULL_BLOCKS
