# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's custom all-reduce kernels: vLLM's own build of them, or else FlashInfer's copy.

In a graph they read the caller's memory directly, whose addresses are registered after the capture;
eager calls copy into a buffer registered before: both as vLLM does it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pyallreduce.bench.peers.base import MIB, Arena, Peer, PingPong, Place

__all__ = ["build", "make"]

_LIBRARY = "_C_stable_libtorch.abi3.so"
_ADDRESSES_BYTES = 8 * MIB  # of registered buffers: 131,072 captured calls
_BLOCKS = 36  # what vLLM launches at most


def make(algorithm: str, place: Place) -> Peer:
    del algorithm
    return Vllm(place, _own() or Copy())


def build(world: int, dtypes: Sequence[torch.dtype]) -> None:
    """Compile FlashInfer's copy, unless vLLM's own build is there."""
    del world, dtypes
    if _own() is None:
        Copy().meta_size()


class Own:
    """vLLM's ops, by its library alone: its Python package is large and not needed."""

    source = "vllm"

    def __init__(self, library: Path) -> None:
        registry: Any = torch.ops
        registry.load_library(str(library))
        ops = registry._C_custom_ar
        self.meta_size = ops.meta_size
        self.init = ops.init_custom_ar
        self.register_buffer = ops.register_buffer
        self.graph_buffers = ops.get_graph_buffer_ipc_meta
        self.register_graph_buffers = ops.register_graph_buffers
        self.all_reduce = ops.all_reduce
        self.dispose = ops.dispose
        self._ops = ops

    def shared(self, nbytes: int) -> list[int]:
        """Everybody's addresses of `nbytes` bytes of zeros on each rank."""
        pointer, handle = self._ops.allocate_shared_buffer_and_handle(nbytes)
        handles = _gather(handle)
        rank = dist.get_rank()
        return [
            pointer if r == rank else self._ops.open_mem_handle(h) for r, h in enumerate(handles)
        ]


class Copy:
    """The same kernels as FlashInfer carries them."""

    source = "flashinfer's copy"

    def __init__(self) -> None:
        self._comm: Any = importlib.import_module("flashinfer.comm")
        self.meta_size = self._comm.vllm_meta_size
        self.init = self._comm.vllm_init_custom_ar
        self.register_buffer = self._comm.vllm_register_buffer
        self.graph_buffers = self._comm.vllm_get_graph_buffer_ipc_meta
        self.register_graph_buffers = self._comm.vllm_register_graph_buffers
        self.dispose = self._comm.vllm_dispose
        self._run = self._comm.vllm_all_reduce

    def shared(self, nbytes: int) -> list[int]:
        pointers: list[int] = self._comm.create_shared_buffer(nbytes)
        cudart: Any = importlib.import_module("flashinfer.comm.cuda_ipc").cudart
        cudart.cudaMemset(ctypes.c_void_p(pointers[dist.get_rank()]), 0, nbytes)
        torch.cuda.synchronize()
        dist.all_reduce(torch.zeros(1))  # nobody goes on before all are zero
        return pointers

    def all_reduce(
        self, ptr: int, x: torch.Tensor, out: torch.Tensor, staging: int, nbytes: int
    ) -> None:
        self._run(ptr, x, out, staging, nbytes, _BLOCKS)


class Vllm(PingPong):
    limit = 64 * MIB

    def __init__(self, place: Place, ops: Own | Copy) -> None:
        super().__init__(place)
        self._ops = ops
        self._staged = place.largest(self.limit)
        signals = ops.shared(int(ops.meta_size()) + self._staged)
        self._staging = ops.shared(self._staged)
        self._addresses = torch.empty(_ADDRESSES_BYTES, dtype=torch.uint8, device=place.device)
        self._ptr = ops.init(signals, self._addresses, place.rank, True)
        ops.register_buffer(self._ptr, self._staging)
        half = place.arena_bytes(self.limit)
        self._halves = tuple(
            Arena(torch.empty(half, dtype=torch.uint8, device=place.device)) for _ in range(2)
        )

    def arenas(self) -> tuple[Arena, Arena]:
        return self._halves[0], self._halves[1]

    def reduce_into(self, x: torch.Tensor, out: torch.Tensor) -> None:
        if self.captures:
            self._ops.all_reduce(self._ptr, x, out, 0, 0)
        else:
            staging = self._staging[self.place.rank]
            self._ops.all_reduce(self._ptr, x, out, staging, self._staged)

    def captured(self) -> None:
        handles, offsets = self._ops.graph_buffers(self._ptr)
        everybody = _gather((list(handles), list(offsets)))
        self._ops.register_graph_buffers(
            self._ptr, [handle for handle, _ in everybody], [offset for _, offset in everybody]
        )
        torch.cuda.synchronize()

    def detail(self, nbytes: int) -> str:
        del nbytes
        return self._ops.source

    def blocks(self, nbytes: int) -> int | None:
        return min(_BLOCKS, -(-nbytes // (16 * 512)))

    def close(self) -> None:
        torch.cuda.synchronize()
        self._ops.dispose(self._ptr)


def _own() -> Own | None:
    spec = importlib.util.find_spec("vllm")
    places = spec.submodule_search_locations if spec is not None else None
    libraries = [Path(place) / _LIBRARY for place in places or ()]
    return next((Own(library) for library in libraries if library.is_file()), None)


def _gather(mine: Any) -> list[Any]:
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, mine)
    return everybody
