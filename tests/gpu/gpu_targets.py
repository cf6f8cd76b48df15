# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_processes.py run: processes that share a GPU, through CUDA IPC."""

from __future__ import annotations

from typing import Any

import torch

from pyallreduce import Communicator, Config
from pyallreduce.errors import PyallreduceError
from pyallreduce.worker import Context


def communicator(context: Context, **config: Any) -> Communicator:
    common = {"share_gpu": True, "slab_bytes": 8 << 20, "timeout_ms": 30_000}
    device = f"cuda:{context.gpu}"
    return Communicator(device=device, config=Config(**{**common, **config}))


def works(comm: Communicator) -> bool:
    x = torch.full((1000,), float(comm.rank + 1), device=comm.device)
    result = comm.all_reduce(x)
    torch.cuda.synchronize()
    comm.check()
    return bool((result == comm.world_size * (comm.world_size + 1) / 2).all())


def cupy_arrays(context: Context, _options: dict[str, Any]) -> list[Any]:
    import cupy

    seen: list[Any] = []
    with communicator(context) as comm, cupy.cuda.Device(context.gpu):
        stream = cupy.cuda.Stream(non_blocking=True)
        for dtype in ("float32", "float16"):
            with stream:
                x = cupy.arange(10_007).astype(dtype) % 64 + context.rank
                y = comm.all_reduce(x)
                comm.all_reduce(x, out=x)
            stream.synchronize()
            expected = 2 * (cupy.arange(10_007).astype(dtype) % 64) + 1
            right = bool((y == expected).all()) and bool((x == expected).all())
            seen.append([type(y).__module__.split(".")[0], str(y.dtype), right])
        integers = comm.all_reduce(cupy.arange(5))
        seen.append([comm.stats().calls, comm.stats().fallbacks, integers.tolist()])
    return seen


def graphs(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Capture without any collective step, replay with changed data, eager calls between."""
    with communicator(context) as comm:
        x = torch.zeros(5003, dtype=torch.bfloat16, device=comm.device)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            y = comm.all_reduce(x)
            z = comm.all_reduce(y[1:], algorithm="two_shot")  # not aligned: through a local copy
        wrong = 0
        for turn in range(50):
            x.fill_(float(turn % 8 + context.rank))
            graph.replay()
            eager = comm.all_reduce(torch.full((turn,), 1.0, device=comm.device))
            total = 2 * (turn % 8) + 1
            wrong += int((y != total).sum()) + int((z != 2 * total).sum())
            wrong += int((eager != 2).sum())
        comm.check()
        return [wrong, torch.cuda.memory.get_allocator_backend()]


def failures(context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    with communicator(context, timeout_ms=1000) as comm:
        good = torch.ones(64, device=comm.device)
        bad = torch.ones(64)  # on the CPU
        try:
            comm.all_reduce(bad if context.rank == 0 else good)
            torch.cuda.synchronize()
            comm.check()
        except PyallreduceError as error:
            seen["refusal"] = [type(error).__name__, str(error)]
        seen["after refusal"] = works(comm)
        if context.rank == 0:
            out = comm.all_reduce(good)
            torch.cuda.synchronize()
            seen["poisoned"] = bool(out.isnan().all())
            try:
                comm.check()
            except PyallreduceError as error:
                seen["abort"] = [type(error).__name__, str(error)]
        a = torch.eye(32, device=comm.device)
        seen["matmul"] = bool(torch.equal(a @ a, a))
        comm.recover()
        seen["after recovery"] = works(comm)
    return seen


def streams(context: Context, _options: dict[str, Any]) -> int:
    """Calls on two streams in turn are ordered by the communicator; one is the default stream."""
    wrong = 0
    with communicator(context) as comm:
        both = [torch.cuda.default_stream(), torch.cuda.Stream()]
        results = []
        for turn in range(40):
            with torch.cuda.stream(both[turn % 2]):
                results.append(
                    comm.all_reduce(torch.full((3000,), float(turn), device=comm.device))
                )
        torch.cuda.synchronize()
        comm.check()
        for turn, result in enumerate(results):
            wrong += int((result != 2 * turn).sum())
    return wrong


def compiled(context: Context, _options: dict[str, Any]) -> list[Any]:
    with communicator(context) as comm:

        @torch.compile(fullgraph=True, backend="aot_eager")
        def step(x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = comm.all_reduce(x * 2)
            return y + 1

        x = torch.ones(100, device=comm.device) * (context.rank + 1)
        return [bool((step(x) == 7).all()), comm.stats().calls]
