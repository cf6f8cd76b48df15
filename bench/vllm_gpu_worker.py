# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Mixed into vLLM's workers by vllm_gpu.py: times the group's all-reduces where they run."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CALLS, _REPLAYS = 50, 20
# Ours, vLLM's, NCCL's, in what the profiler calls them.
_KERNELS = ("one_shot", "two_shot", "cross_device_reduce", "AllReduce")


def guarded(worker: type) -> list[tuple[type, str, Any, Any]]:
    """The methods of a worker, and of the outputs that it returns, that the plugin has wrapped: as
    they are, and without our wrappers."""
    from vllm.v1.outputs import AsyncModelRunnerOutput

    owners = [*worker.__mro__, *AsyncModelRunnerOutput.__subclasses__()]
    names = ("execute_model", "sample_tokens", "get_output")
    methods = [(owner, name, vars(owner).get(name)) for owner in owners for name in names]
    return [
        (owner, name, method, inspect.unwrap(method, stop=_is_foreign))
        for owner, name, method in methods
        if hasattr(method, "_pyallreduce_guarded")
    ]


def _is_foreign(method: Any) -> bool:
    """vLLM has wrappers of its own below ours."""
    return "pyallreduce" not in Path(method.__code__.co_filename).parts


def _clocked(function: Callable[[], None], took: list[float]) -> Callable[[], None]:
    @functools.wraps(function)
    def clocked() -> None:
        begin = time.perf_counter()
        try:
            function()
        finally:
            took.append(time.perf_counter() - begin)

    return clocked


class Probe:
    """`micro` times a graph of nothing else; `watch` and `seen` time a model's own kernels;
    `add_arm` and `use_arm` change who carries the all-reduces of a running engine."""

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

    def add_arm(self, name: str) -> None:
        """Capture the model's graphs with this arm's all-reduce in the slot, and keep both.

        `ours` is what the engine started with, and `unchecked` the same without our steps.
        """
        from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce
        from vllm.distributed.parallel_state import get_tp_group

        from pyallreduce.integrations import adapter

        communicator = get_tp_group().device_communicator
        if name == "ours":
            self.arms = {name: (communicator.ca_comm, self._graphs())}
            self.slots = adapter._open[:]
            self.guarded = guarded(type(self))
            return
        if name == "unchecked":
            self.arms[name] = self.arms["ours"]
            return
        slot = None
        if name == "stock":
            slot = CustomAllreduce(group=communicator.cpu_group, device=communicator.device)
            assert not slot.disabled
        self.arms[name] = (slot, [(owner, what, {}) for owner, what, _ in self._graphs()])
        self.use_arm(name)
        self.model_runner.capture_model()

    def use_arm(self, name: str) -> None:
        """From now on this arm's all-reduce, graphs, and work around a step."""
        import torch
        from vllm.distributed.parallel_state import get_tp_group

        from pyallreduce.integrations import adapter

        torch.cuda.synchronize()
        slot, graphs = self.arms[name]
        get_tp_group().device_communicator.ca_comm = slot
        for owner, what, captured in graphs:
            setattr(owner, what, captured)
        adapter._open[:] = self.slots if name == "ours" else []
        for owner, what, ours, original in self.guarded:
            setattr(owner, what, ours if name == "ours" else original)

    def clock_steps(self) -> None:
        """From now on note how long our part of each step takes."""
        from pyallreduce.integrations import adapter

        self.spent: dict[str, list[float]] = {}
        for name in ("start_step", "check_all"):
            original = getattr(adapter, name)
            took = self.spent.setdefault(name, [])
            setattr(adapter, name, _clocked(original, took))

    def step_parts(self) -> dict[str, tuple[int, float]]:
        """How often each part was called, and its median in us; the clock's own time is in it."""
        from pyallreduce.integrations import adapter

        found = {}
        for name, took in self.spent.items():
            setattr(adapter, name, getattr(adapter, name).__wrapped__)
            found[name] = (len(took), round(statistics.median(took or [0.0]) * 1e6, 2))
        return found

    def _graphs(self) -> list[tuple[Any, str, dict[Any, Any]]]:
        """Where the engine keeps its graphs by shape: whole ones, and a compiled model's pieces."""
        from vllm.compilation.cuda_graph import CUDAGraphWrapper

        manager = getattr(self.model_runner, "cudagraph_manager", None)
        owners = [(manager, "graphs")] if manager is not None else []
        pieces = sorted(CUDAGraphWrapper._all_instances, key=id)
        owners += [(piece, "concrete_cudagraph_entries") for piece in pieces]
        return [(owner, what, getattr(owner, what)) for owner, what in owners]

    def slot(self) -> dict[str, Any]:
        """Who stands in the slot, and what it has counted."""
        from vllm.distributed.parallel_state import get_tp_group

        slot = getattr(get_tp_group().device_communicator, "ca_comm", None)
        ours = getattr(slot, "communicator", None)
        stats = None if ours is None else dataclasses.asdict(ours.stats())
        return {"slot": type(slot).__name__, "stats": stats}
