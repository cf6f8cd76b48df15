# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What a sample of each mode is, for any backend; `timing` says how samples become figures.

graph: one captured graph of K calls, each on the result of the one before.
graph-cold: the K calls go round over buffers that together exceed the L2 twice, and the L2 is
    overwritten before each replay.
graph-chain: before each call a kernel that writes its input (a scale), behind it one that reads its
    result (an RMSNorm). The same graph without the calls is timed too; the figure is the
    difference.
eager: K calls one after the other, the host's work included, and how long the host takes for one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pyallreduce.bench import timing
from pyallreduce.bench.options import Mode
from pyallreduce.bench.peers.base import Peer
from pyallreduce.bench.timing import SPIN_CYCLES, between_events, meet, quantile, slowest

__all__ = ["Figures", "buffers_of", "measure", "run_captured"]

_L2_BYTES = 50 << 20  # of an H100
_COLD_BYTES = 128 << 20  # more than the L2 twice
_HIDDEN = 4096
_LARGE = 16 << 20  # above this, fewer replays
_BASE_SAMPLES = 20
_EAGER_SAMPLES = 30  # a round of 200 calls each: more would be most of a comparison's time
_FEWEST = 5
assert _COLD_BYTES > 2 * _L2_BYTES


@dataclass(frozen=True)
class Figures:
    """µs of one call, slowest rank: median and p99 of `samples`.

    `host_us` is what the host takes for one call (eager on GPUs), `chain_us` the whole of a call
    with its neighbours (graph-chain). `wrong` counts elements of the last results that are not
    zero, as they must be.
    """

    us: float
    us_p99: float
    samples: int
    host_us: float | None
    chain_us: float | None
    wrong: int


@dataclass(frozen=True)
class Budget:
    """How long a cell may take: samples wished for, warm-up, and a bound for large messages."""

    samples: int
    warmup: int
    seconds: float


def buffers_of(nbytes: int, mode: Mode, calls: int) -> int:
    """How many buffers a cell of this mode goes round over."""
    if mode != "graph-cold":
        return 1
    return min(calls, max(2, -(-_COLD_BYTES // max(nbytes, 1)) + 1))


def measure(
    peer: Peer, mode: Mode, nbytes: int, dtype: torch.dtype, calls: int, budget: Budget
) -> Figures:
    """Time one cell; every rank must come here with the same arguments."""
    elements = nbytes // dtype.itemsize
    xs = peer.buffers(buffers_of(nbytes, mode, calls), elements, dtype)
    start = timing.zero_sum(peer.place.rank, peer.place.world, elements, dtype, peer.place.device)
    if peer.serves(nbytes, dtype, "eager"):  # loads code, which a capture may not
        xs[0].copy_(start)
        peer.all_reduce(xs[0])
    if mode == "eager":
        return _eager(peer, xs[0], start, calls, nbytes, budget)
    if mode == "graph-chain":
        return _chain(peer, xs[0], start, calls, nbytes, budget)
    work = _round(peer, xs, calls) if mode == "graph-cold" else _dependent(peer, xs[0], calls)
    graph, results = run_captured(peer, work)
    for x in xs:
        x.copy_(start)
    before = _flusher(peer.place.device) if mode == "graph-cold" else _nothing
    sample = between_events(
        graph.replay, peer.place.device, spin=_spin(calls, nbytes), before=before
    )
    return _figures(sample, calls, nbytes, budget, results)


def run_captured(
    peer: Peer, work: Callable[[], list[torch.Tensor]]
) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    """A graph of `work`, not yet replayed, and the tensors that it writes."""
    with peer.capturing():
        return _capture(peer, work)


def _capture(
    peer: Peer, work: Callable[[], list[torch.Tensor]]
) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    torch.cuda.synchronize(peer.place.device)
    graph = torch.cuda.CUDAGraph()
    # Other threads of this process (NCCL's watchdog) may call CUDA meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = work()
    return graph, results


def _dependent(peer: Peer, x: torch.Tensor, calls: int) -> Callable[[], list[torch.Tensor]]:
    def work() -> list[torch.Tensor]:
        y = x
        for _ in range(calls):
            y = peer.all_reduce(y)
        return [y]

    return work


def _round(peer: Peer, xs: Sequence[torch.Tensor], calls: int) -> Callable[[], list[torch.Tensor]]:
    # The results are kept, so that memory which a backend allocates is not used twice either.
    return lambda: [peer.all_reduce(xs[i % len(xs)]) for i in range(calls)]


def _eager(
    peer: Peer, x: torch.Tensor, start: torch.Tensor, calls: int, nbytes: int, budget: Budget
) -> Figures:
    x.copy_(start)
    last = [x]
    host: list[float] = []

    def work() -> None:
        begin = time.perf_counter()
        y = last[0]
        for _ in range(calls):
            y = peer.all_reduce(y)
        host.append((time.perf_counter() - begin) * 1e6 / calls)
        last[0] = y

    if peer.place.device.type == "cuda":
        sample = between_events(work, peer.place.device)
    else:
        sample = _by_clock(work)
    few = replace(budget, samples=min(budget.samples, _EAGER_SAMPLES))
    figures = _figures(sample, calls, nbytes, few, last)
    host_us = None
    if peer.place.device.type == "cuda":
        host_us = quantile(slowest(host[-figures.samples :]), 0.5)
    return Figures(**{**vars(figures), "host_us": host_us})


def _chain(
    peer: Peer, x: torch.Tensor, start: torch.Tensor, calls: int, nbytes: int, budget: Budget
) -> Figures:
    hidden = min(x.numel(), _HIDDEN)
    weight = torch.ones(hidden, dtype=x.dtype, device=x.device)
    begin = start.clone()

    def chain(call: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        h = begin
        for _ in range(calls):
            torch.mul(h, 1.0, out=x)
            y = call(x)
            h = torch.nn.functional.rms_norm(y.view(-1, hidden), (hidden,), weight).view(-1)
        return [y]

    chain(lambda x: x)  # loads code
    without, _ = _capture(peer, lambda: chain(lambda x: x))
    graph, results = run_captured(peer, lambda: chain(peer.all_reduce))
    device = peer.place.device
    few = replace(budget, samples=min(budget.samples, _BASE_SAMPLES))
    base = _figures(
        between_events(without.replay, device, spin=_spin(2 * calls, nbytes)),
        calls,
        nbytes,
        few,
        [],
    )
    whole = _figures(
        between_events(graph.replay, device, spin=_spin(3 * calls, nbytes)),
        calls,
        nbytes,
        budget,
        results,
    )
    return Figures(
        us=whole.us - base.us,
        us_p99=whole.us_p99 - base.us,
        samples=whole.samples,
        host_us=None,
        chain_us=whole.us,
        wrong=whole.wrong,
    )


def _figures(
    sample: Callable[[], float],
    calls: int,
    nbytes: int,
    budget: Budget,
    results: Sequence[torch.Tensor],
) -> Figures:
    took = [_wall(sample) for _ in range(max(budget.warmup, 2))][-1]
    count = budget.samples
    if nbytes > _LARGE:
        agreed = slowest([took])[0]
        count = min(count, max(_FEWEST, int(budget.seconds / max(agreed, 1e-6))))
    per_call = slowest([sample() / calls for _ in range(count)])
    wrong = sum(int(result.count_nonzero()) for result in _distinct(results))
    return Figures(quantile(per_call, 0.5), quantile(per_call, 0.99), count, None, None, wrong)


def _distinct(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list({t.data_ptr(): t for t in tensors}.values())


def _wall(sample: Callable[[], float]) -> float:
    begin = time.perf_counter()
    sample()
    return time.perf_counter() - begin


def _by_clock(work: Callable[[], None]) -> Callable[[], float]:
    def sample() -> float:
        meet()
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) * 1e6

    return sample


def _spin(nodes: int, nbytes: int) -> int:
    """Cycles that outlast the queueing of a graph with so many calls; a large one may be several
    launches."""
    launches = 4 * nodes if nbytes > _LARGE // 4 else nodes
    return max(SPIN_CYCLES, SPIN_CYCLES // 200 * launches)


def _flusher(device: torch.device) -> Callable[[], object]:
    scratch = torch.empty(_COLD_BYTES, dtype=torch.uint8, device=device)
    return scratch.zero_


def _nothing() -> None:
    return None
