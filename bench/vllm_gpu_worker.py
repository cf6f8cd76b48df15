# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Mixed into vLLM's workers by vllm_gpu.py: times the group's all-reduces where they run."""

from __future__ import annotations

import dataclasses
import statistics
import zlib
from typing import Any

_CALLS, _REPLAYS = 50, 20
# Ours, vLLM's, NCCL's, in what the profiler calls them.
_KERNELS = ("one_shot", "two_shot", "cross_device_reduce", "AllReduce")


class Probe:
    """`micro` times a graph of nothing else; `watch` and `seen` time a model's own kernels."""

    def weights(self) -> None:
        """Random weights that differ from rank to rank.

        vLLM's dummy ones are the same on all: a sum of equal terms does not tell whose they were.
        """
        import torch

        with torch.inference_mode():
            for name, weight in self.get_model().named_parameters():
                if "norm" in name:  # every rank has the whole
                    weight.fill_(1)
                    continue
                generator = torch.Generator(weight.device)
                generator.manual_seed(zlib.crc32(f"{self.rank} {name}".encode()))
                weight.normal_(0, 0.02, generator=generator)
        torch.cuda.synchronize()

    def micro(self, rows: int, columns: int) -> float:
        """us of one all-reduce of (rows, columns) in a graph of 50, the median of its replays."""
        import torch
        from vllm.distributed import tensor_model_parallel_all_reduce as all_reduce
        from vllm.distributed.parallel_state import graph_capture

        x = torch.zeros(rows, columns, dtype=torch.bfloat16, device="cuda")
        for _ in range(3):
            all_reduce(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with (
            graph_capture(x.device) as context,
            torch.cuda.graph(graph, stream=context.stream),
        ):
            y = x  # `x` has to outlive the replays
            for _ in range(_CALLS):
                y = all_reduce(y)
        graph.replay()
        torch.cuda.synchronize()
        times = []
        for _ in range(_REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) * 1e3 / _CALLS)
        return statistics.median(times)

    def watch(self) -> None:
        """Start to record kernels."""
        import torch

        self.watching = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self.watching.start()

    def seen(self) -> list[tuple[float, float]]:
        """Start and duration, in us, of each all-reduce kernel since `watch`, in their order."""
        import torch

        torch.cuda.synchronize()
        self.watching.stop()
        found = [
            (event.time_range.start, event.time_range.elapsed_us())
            for event in self.watching.events()
            if any(name in event.name for name in _KERNELS)
        ]
        return sorted(found)

    def captures(self, count: int, columns: int) -> int:
        """Device memory, in bytes, that `count` captures and their replays leave behind here."""
        import torch
        from vllm.distributed import tensor_model_parallel_all_reduce as all_reduce
        from vllm.distributed.parallel_state import graph_capture

        x = torch.ones(16, columns, dtype=torch.bfloat16, device="cuda")

        def capture() -> None:
            graph = torch.cuda.CUDAGraph()
            with (
                graph_capture(x.device) as context,
                torch.cuda.graph(graph, stream=context.stream),
            ):
                y = all_reduce(x)
            graph.replay()
            torch.cuda.synchronize()
            assert bool((y == self.parallel_config.tensor_parallel_size).all())

        def used() -> int:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            return -free

        for _ in range(5):  # what is kept once and for all
            capture()
        before = used()
        for _ in range(count):
            capture()
        return used() - before

    def slot(self) -> dict[str, Any]:
        """Who stands in the slot, and what it has counted."""
        from vllm.distributed.parallel_state import get_tp_group

        slot = getattr(get_tp_group().device_communicator, "ca_comm", None)
        ours = getattr(slot, "communicator", None)
        stats = None if ours is None else dataclasses.asdict(ours.stats())
        return {"slot": type(slot).__name__, "stats": stats}
