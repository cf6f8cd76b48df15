# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Memory that every rank has mapped, from torch's symmetric memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Symmetric"]


class Symmetric:
    """`nbytes` of memory on each rank, filled with zeros; every rank makes it at the same point."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        import torch.distributed._symmetric_memory as symmetric_memory

        world: Any = dist.group.WORLD
        self.memory = symmetric_memory.empty(nbytes, dtype=torch.uint8, device=device)
        handle: Any = symmetric_memory.rendezvous(self.memory, world)
        self._handle = handle
        self.everybodys: list[torch.Tensor] = [
            handle.get_buffer(rank, (nbytes,), torch.uint8) for rank in range(dist.get_world_size())
        ]
        self.memory.zero_()
        torch.cuda.synchronize(device)
        dist.all_reduce(torch.zeros(1))  # nobody goes on before all are zero

    def of_each(self, start: int, nbytes: int) -> list[torch.Tensor]:
        """The same part of every rank's memory, in rank order."""
        return [memory[start : start + nbytes] for memory in self.everybodys]
