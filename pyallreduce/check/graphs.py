# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: several, replayed with changed data, interleaved with each other and with eager
calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pyallreduce.check.cases import Case, Data

__all__ = ["replays"]

Call = Callable[..., torch.Tensor]
Result = tuple[str, torch.Tensor, list[torch.Tensor]]
_FIRST_TURN = 30_000


@dataclass(frozen=True)
class Recording:
    """One graph: `x` is read at each replay; `apart` and `within` are written, the latter in
    place."""

    graph: torch.cuda.CUDAGraph
    x: torch.Tensor
    apart: torch.Tensor
    within: torch.Tensor


def replays(
    call: Call, data: Data, rank: int, capacity: int, itemsize: int, rounds: int
) -> Iterator[Result]:
    """Yield (name, result, everybody's inputs) of each call, in an order that is the same on all
    ranks.

    Args:
        capacity: bytes that go through the mailboxes at once; one graph holds a message of more.
        rounds: how often each graph is replayed.
    """
    sizes = (1021, 65_536 // itemsize, capacity // itemsize + 3)
    recordings = {size: _record(call, data.inputs(Case(size, "plain", 0))[rank]) for size in sizes}
    turn = _FIRST_TURN
    for number in range(rounds):
        for place in range(len(sizes)):
            size = sizes[(place * (1 + number % 2) + number) % len(sizes)]
            turn += 1
            inputs = data.inputs(Case(size, "plain", turn))
            recording = recordings[size]
            recording.x.copy_(inputs[rank])
            recording.graph.replay()
            if number % 3 == 0:
                # On top of the replay, before its result is looked at.
                between = Case(97 + 611 * place, "plain", turn)
                others = data.inputs(between)
                yield f"eager between replays, {between}", call(others[rank]), others
            yield f"replay {number}, {size} elements", recording.apart, inputs
            yield f"replay {number}, {size} elements, in place", recording.within, inputs


def _record(call: Call, value: torch.Tensor) -> Recording:
    """Capture an out-of-place call and, behind it, one in place. Capturing runs nothing."""
    x, within = value.clone(), torch.empty_like(value)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads of this process (NCCL's watchdog) may call CUDA meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        apart = call(x)
        within.copy_(x)
        call(within, out=within)
    return Recording(graph, x, apart, within)
