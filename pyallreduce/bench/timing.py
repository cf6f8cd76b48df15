# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How a cell is timed.

graph: K dependent calls in place on one buffer are captured once; a sample is one replay between
two CUDA events, divided by K. Ranks start together: a barrier on the host, then on the stream a
spin that lasts until the replay is queued behind it, and an all-reduce that ends on all ranks at
once.

eager: a sample is K calls one after the other, the host's work included: on GPUs between two events
behind the same aligning all-reduce, without the spin; on the CPU by the clock.

The time of a sample is the slowest rank's. The buffer's sum over the ranks is zero, so that it
stays finite however often it is summed: after the first call zeros travel, and what is not zero at
the end is wrong.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pyallreduce.bench.backends import Backend
from pyallreduce.bench.options import Mode

__all__ = [
    "SPIN_CYCLES",
    "Timing",
    "between_events",
    "meet",
    "quantile",
    "slowest",
    "spin_for",
    "time_calls",
    "zero_sum",
]

SPIN_CYCLES = 1_000_000  # about half a millisecond: longer than queueing a graph of 200 kernels
_MOST_CYCLES = 20 * SPIN_CYCLES
_CYCLES_A_SECOND = 2e9
# 8 ranks' share of one sign adds up to 240 at most: exact in bfloat16, whatever the order.
_LARGEST = 60


@dataclass(frozen=True)
class Timing:
    """µs of one call: median and 99th percentile over the samples, of the slowest rank of each."""

    us: float
    us_p99: float


def time_calls(
    backend: Backend, x: torch.Tensor, mode: Mode, calls: int, warmup: int, samples: int
) -> Timing:
    """Time `backend` on `x`, in place; every rank must come here with the same arguments."""
    if mode == "graph":
        sample = _graph(backend, x, calls)
    elif x.device.type == "cuda":
        sample = _eager_cuda(backend, x, calls)
    else:
        sample = _eager_cpu(backend, x, calls)
    for _ in range(max(warmup, 1)):  # at least one: a first launch loads code
        sample()
    per_call = slowest([sample() / calls for _ in range(samples)])
    return Timing(us=quantile(per_call, 0.5), us_p99=quantile(per_call, 0.99))


def zero_sum(
    rank: int, world: int, elements: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Non-zero integers whose sum over the ranks is zero, exactly, in every order of summation."""
    weights = [1, -1] * (world // 2) if world % 2 == 0 else [1, -1] * (world // 2 - 1) + [1, 1, -2]
    values = torch.arange(elements, device=device, dtype=torch.int32) % (_LARGEST // 2) + 1
    return (values * weights[rank]).to(dtype)


def quantile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that `fraction` of the values do not exceed; the middle's mean for 0.5."""
    ordered = sorted(values)
    if fraction == 0.5 and len(ordered) % 2 == 0:
        return (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2
    return ordered[max(math.ceil(fraction * len(ordered)) - 1, 0)]


def slowest(mine: Sequence[float]) -> list[float]:
    """Of each sample the slowest rank's time; a collective on the CPU."""
    everybody = torch.tensor(mine, dtype=torch.float64)
    dist.all_reduce(everybody, dist.ReduceOp.MAX)
    return [float(value) for value in everybody]


def _graph(backend: Backend, x: torch.Tensor, calls: int) -> Callable[[], float]:
    backend.all_reduce(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads of this process (NCCL's watchdog) may call CUDA meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            backend.all_reduce(x)
    return between_events(graph.replay, x.device, spin=SPIN_CYCLES)


def _eager_cuda(backend: Backend, x: torch.Tensor, calls: int) -> Callable[[], float]:
    return between_events(lambda: _repeat(backend, x, calls), x.device)


def _eager_cpu(backend: Backend, x: torch.Tensor, calls: int) -> Callable[[], float]:
    def sample() -> float:
        meet()
        start = time.perf_counter()
        _repeat(backend, x, calls)
        return (time.perf_counter() - start) * 1e6

    return sample


def _repeat(backend: Backend, x: torch.Tensor, calls: int) -> None:
    for _ in range(calls):
        backend.all_reduce(x)


def between_events(
    work: Callable[[], object],
    device: torch.device,
    *,
    spin: int = 0,
    before: Callable[[], object] = lambda: None,
) -> Callable[[], float]:
    """A sample: the µs between two events around `work` on the current stream, all ranks starting
    together.

    Args:
        spin: cycles for which the stream is kept busy until `work` is queued behind it; more
            where queueing took longer in the sample before.
        before: queued ahead of all that.
    """
    cuda: Any = torch.cuda
    start, end = (cuda.Event(enable_timing=True) for _ in range(2))
    token = torch.zeros(1, device=device)
    cycles = spin

    def sample() -> float:
        nonlocal cycles
        meet()
        before()
        since = time.perf_counter()
        if spin:
            cuda._sleep(cycles)
        dist.all_reduce(token)
        start.record()
        work()
        end.record()
        cycles = spin_for(time.perf_counter() - since, spin)
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3

    return sample


def spin_for(queueing_s: float, least: int) -> int:
    """Cycles that outlast queueing by half, within reason."""
    return min(max(int(1.5 * queueing_s * _CYCLES_A_SECOND), least), _MOST_CYCLES)


def meet() -> None:
    """A barrier between the hosts' threads."""
    dist.all_reduce(torch.zeros(1))
