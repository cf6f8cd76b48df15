# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Who is measured, behind one small protocol: all-reduce a tensor in place, on the current
stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.distributed as dist

from pyallreduce import Communicator

__all__ = ["NAMES", "Backend", "make"]

NAMES = ("auto", "one_shot", "two_shot", "nccl", "gloo")


class Backend(Protocol):
    """One column of the table.

    `name` and `algorithm` stand in the records. `exact` says that the rank-order sum is promised
    bit for bit, `capturable` that calls can be part of a CUDA graph.
    """

    @property
    def name(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def exact(self) -> bool: ...
    @property
    def capturable(self) -> bool: ...
    def all_reduce(self, x: torch.Tensor) -> None: ...
    def detail(self, nbytes: int) -> str:
        """What carries a message of this size."""
        ...


@dataclass(frozen=True)
class Ours:
    """A `Communicator`, by its default dispatch ("auto") or by one forced algorithm."""

    comm: Communicator
    algorithm: Literal["auto", "one_shot", "two_shot"]
    name: str = "pyallreduce"

    @property
    def exact(self) -> bool:
        native = self.comm.decision.backend == "native"
        return native and (self.algorithm != "auto" or self.comm.one_order)

    @property
    def capturable(self) -> bool:
        return self.comm.device.type == "cuda" and (self.exact or _nccl_serves())

    def all_reduce(self, x: torch.Tensor) -> None:
        forced = None if self.algorithm == "auto" else self.algorithm
        self.comm.all_reduce(x, out=x, algorithm=forced)

    def detail(self, nbytes: int) -> str:
        return self.comm.plan(nbytes) if self.algorithm == "auto" else self.algorithm


@dataclass(frozen=True)
class Torch:
    """torch.distributed on the default group: NCCL with its own choice of algorithm, or gloo."""

    name: Literal["nccl", "gloo"]
    algorithm: str = "default"
    exact: bool = False

    @property
    def capturable(self) -> bool:
        return self.name == "nccl"

    def all_reduce(self, x: torch.Tensor) -> None:
        dist.all_reduce(x)

    def detail(self, nbytes: int) -> str:
        del nbytes
        return self.name


def make(comm: Communicator, names: Sequence[str]) -> list[Backend]:
    """The backends that serve on this communicator's device, in the order of `NAMES`.

    Args:
        names: those wanted; empty for all.
    """
    native = comm.decision.backend == "native"
    peer: Literal["nccl", "gloo"] = "gloo"
    if comm.device.type == "cuda" and _nccl_serves():
        peer = "nccl"
    everything: list[Backend] = [Ours(comm, "auto")]
    if native:
        everything += [Ours(comm, "one_shot"), Ours(comm, "two_shot")]
    everything.append(Torch(peer))
    return [b for b in everything if not names or {b.name, b.algorithm} & set(names)]


def _nccl_serves() -> bool:
    return "cuda:nccl" in str(dist.get_backend_config())
