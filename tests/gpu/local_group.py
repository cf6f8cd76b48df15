# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Several ranks on one GPU in one process: each has its own slab and stream, no IPC.

The kernels of all ranks must be resident together, so the grids are kept small. This is how the
device code is tested where there is only one GPU; what needs NVLink is tested with two and more.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from pyallreduce import _C
from pyallreduce.arrays import DTYPE_CODES
from pyallreduce.policy import Limits, Plan, plan_for

DEVICE = torch.device("cuda", 0)
Way = Literal["one_shot", "two_shot"]
WAYS: tuple[Way, ...] = get_args(Way)


class LocalGroup:
    """`world` ranks on device 0; `blocks` is the largest grid."""

    def __init__(
        self, world: int, slab_bytes: int = 8 << 20, blocks: int = 16, deadline_s: float = 20.0
    ) -> None:
        self.world = world
        # Every rank's grid, and the next one that waits behind it, on an SM of its own.
        resident = torch.cuda.get_device_properties(DEVICE).multi_processor_count // (2 * world)
        self.limits = Limits(world, "cuda", min(blocks, resident))
        self.layout = _C.Layout(world, slab_bytes)
        self.deadline_ms = int(deadline_s * 1e3)
        self.slabs = [_C.DeviceMemory(0, self.layout.bytes) for _ in range(world)]
        self.pages = [_C.SharedMemory(4096) for _ in range(world)]
        self.arm(1)
        addresses = [slab.address for slab in self.slabs]
        self.ranks = [
            _C.CudaRank(0, rank, self.layout, addresses, self.pages[rank].address)
            for rank in range(world)
        ]
        self.streams = [torch.cuda.Stream(DEVICE) for _ in range(world)]
        torch.cuda.synchronize()

    def arm(self, generation: int) -> None:
        for slab, page in zip(self.slabs, self.pages, strict=True):
            for name, offset, size, armed in self.layout.regions():
                if name != "header":
                    slab.fill(offset, size, 0xFF if armed else 0)
            slab.write(self.layout.control, struct.pack("<II", 0, generation))
            _C.arm_record(page, generation, self.deadline_ms, self.deadline_ms)

    def plan(self, x: torch.Tensor, way: Way) -> Plan:
        return plan_for(x.nbytes, self.limits, way)

    def launch(
        self, rank: int, x: torch.Tensor, out: torch.Tensor, plan: Plan, tag: int = 0
    ) -> int:
        """One rank's call, on torch's current stream."""
        code = DTYPE_CODES[x.dtype]
        launch = self.ranks[rank].launch(x.numel(), code, plan.algorithm, plan.blocks, plan.lanes)
        stream = torch.cuda.current_stream().cuda_stream
        return launch(x.data_ptr(), out.data_ptr(), tag, stream)

    def all_reduce(
        self, inputs: Sequence[torch.Tensor], outs: Sequence[torch.Tensor], way: Way
    ) -> None:
        """Every rank's call, on its stream; complete when this returns."""
        torch.cuda.synchronize()
        for rank, stream in enumerate(self.streams):
            with torch.cuda.stream(stream):
                x = inputs[rank]
                assert self.launch(rank, x, outs[rank], self.plan(x, way)) == 0
        torch.cuda.synchronize()
        assert [rank.state() for rank in self.ranks] == [0] * self.world

    def close(self) -> None:
        torch.cuda.synchronize()
        self.ranks.clear()
        for memory in (*self.slabs, *self.pages):
            memory.close()


def random_inputs(world: int, elements: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return [
        torch.randn(elements, generator=generator, device=DEVICE).to(dtype) for _ in range(world)
    ]
