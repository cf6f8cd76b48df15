# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's one-shot all-reduce, TensorRT-LLM's kernel, with programmatic dependent launch.

It works on rows (tokens) of a hidden size: here 4096 elements a row, or one row where the message
is shorter.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from pyallreduce.bench.peers.base import MIB, Arena, Peer, Place

__all__ = ["build", "make"]

_HIDDEN = 4096
_PLAIN = 0  # AllReduceFusionPattern.kAllReduce: nothing is fused to it


def make(algorithm: str, place: Place) -> Peer:
    del algorithm
    return OneShot(place)


def build(world: int, dtypes: Sequence[torch.dtype]) -> None:
    del world, dtypes
    _module().get_trtllm_comm_module()


def _module() -> Any:
    return importlib.import_module("flashinfer.comm.trtllm_ar")


class OneShot(Peer):
    limit = 8 * MIB

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._arena = Arena(
            torch.empty(place.arena_bytes(self.limit), dtype=torch.uint8, device=place.device)
        )
        # The public function warns at each call that it will be renamed: this is what it calls.
        self._run: Any = _module().get_trtllm_comm_module().trtllm_allreduce_fusion
        self._workspaces: dict[bool, Any] = {}

    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        single = dtype == torch.float32
        if single not in self._workspaces:
            self._workspaces[single] = self._workspace(dtype)
        return self._arena.views(count, elements, dtype)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        hidden = min(x.numel(), _HIDDEN)
        self._run(
            allreduce_in=x,
            world_size=self.place.world,
            world_rank=self.place.rank,
            token_num=x.numel() // hidden,
            hidden_dim=hidden,
            workspace_ptrs=self._workspaces[x.dtype == torch.float32][1],
            launch_with_pdl=True,
            use_oneshot=True,
            trigger_completion_at_end=False,
            fp32_acc=x.dtype != torch.float32,
            pattern_code=_PLAIN,
            allreduce_out=x,
            residual_in=None,
            residual_out=None,
            norm_out=None,
            quant_out=None,
            scale_out=None,
            rms_gamma=None,
            rms_eps=None,
            scale_factor=None,
            layout_code=None,
        )
        return x

    def _workspace(self, dtype: torch.dtype) -> Any:
        """(mappings, their addresses on the device); the first one keeps the memory alive."""
        largest = self.place.largest(self.limit)
        rows = max(1, -(-largest // (_HIDDEN * dtype.itemsize)))
        create = _module().trtllm_create_ipc_workspace_for_all_reduce_fusion
        return create(
            self.place.rank, self.place.world, rows, _HIDDEN, use_fp32_lamport=dtype.itemsize == 4
        )
