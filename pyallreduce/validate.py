# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Live checks at start-up: the production launch, slab and shapes, before anybody hears "ready".

First every directed edge by a ping-pong of resident kernels, then every kernel in use on payloads
that name rank, position and turn, compared bit for bit: eager, and on a GPU as a graph's replay. Of
each algorithm a short message in every dtype, the widest grid, and of two-shot a launch of laps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pyallreduce.edge import Edge
from pyallreduce.errors import AllReduceAborted, CallMismatch
from pyallreduce.native import NativePath
from pyallreduce.policy import ALGORITHMS, Plan
from pyallreduce.reasons import Code, Reason
from pyallreduce.verdicts import unforeseen

__all__ = ["edges", "first_calls"]

_ROUNDS = 8
_ELEMENTS = 4099  # several blocks, and a tail
_VECTOR = 16  # bytes
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SOUND, _SILENT = 1, 2  # csrc/protocol/slab.h, enum EdgeState


def edges(native: NativePath, rank: int, nonce: bytes) -> Reason:
    """OK, or the broken edge that this rank knows most about. Every rank of the group must call."""
    native.patience.prove()
    try:
        found = native.ping_pong(_ROUNDS, int.from_bytes(nonce[:4], "little"))
    except Exception as error:
        return unforeseen(rank, error)
    broken = [edge for edge in found if edge.state != _SOUND]
    return _verdict(rank, broken[0]) if broken else Reason(Code.OK)


def _verdict(rank: int, edge: Edge) -> Reason:
    """What a broken edge looks like from this end.

    Both ends send first and then wait, so that a rank whose writes are lost hears one round more
    than its peer does. Where it does, it can tell by reading what it wrote whether the write was
    lost or went to a private copy.
    """
    there, here = f"rank {rank} to rank {edge.peer}", f"rank {edge.peer} to rank {rank}"
    after = f"{edge.rounds} of {_ROUNDS} rounds in {edge.nanoseconds / 1e9:.1f} s"
    if edge.state != _SILENT:
        return Reason(Code.P2P_CORRUPT, f"{here}, after {after}")
    if not edge.read_back:
        return Reason(Code.P2P_WRITE_LOST, f"{there}, {after}")
    if edge.rounds == 0:
        return Reason(Code.KERNEL_TIMEOUT, f"nothing came from {here}, {after}")
    return Reason(Code.P2P_PRIVATE_MIRROR, f"{there}, {after}")


@dataclass(frozen=True)
class _Case:
    """One kernel: its launch, its arguments, and what must come out."""

    plan: Plan
    x: torch.Tensor
    out: torch.Tensor
    expected: torch.Tensor


def first_calls(native: NativePath, rank: int, device: torch.device) -> Reason:
    """OK, or why this rank vetoes the native path. Every rank of the group must call it."""
    native.patience.prove()
    try:
        cases = [
            _case(native.limits.world, rank, device, turn, *launch)
            for turn, launch in enumerate(_launches(native))
        ]
        veto = _eager(native, cases)
        if veto.code is Code.OK and device.type == "cuda":
            with torch.cuda.device(device):  # torch captures on the current one
                stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                veto = _replay(native, cases, stream)
    except CallMismatch as error:
        return Reason(Code.KERNEL_MISMATCH, str(error))
    except AllReduceAborted as error:
        return Reason(Code.KERNEL_TIMEOUT, str(error))
    except Exception as error:
        return unforeseen(rank, error)
    return veto


def _eager(native: NativePath, cases: list[_Case]) -> Reason:
    for case in cases:
        _call(native, case)
    return _compare(native, cases, "eager")


def _replay(native: NativePath, cases: list[_Case], stream: torch.cuda.Stream) -> Reason:
    """The same as one graph, on other payloads than those it was captured with.

    `stream` is of the cases' device: torch's own for captures is of the device that was the current
    one at its first capture.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads of the program may use CUDA meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for case in cases:
            _call(native, case)
    native.patience.prove()  # the capture asked for patience
    for case in cases:
        case.x.neg_()
        case.expected.neg_()
        case.out.fill_(-1.0)
    graph.replay()
    return _compare(native, cases, "graph")


def _launches(native: NativePath) -> Iterator[tuple[Plan, torch.dtype, int]]:
    """The plans to prove, with the dtype and the elements of their messages."""
    for dtype in _DTYPES:
        for algorithm in ALGORITHMS:
            yield native.plan(_ELEMENTS * dtype.itemsize, algorithm), dtype, _ELEMENTS
    dtype, world = torch.bfloat16, native.limits.world
    for algorithm in ALGORITHMS:
        widest = native.plan(1 << 40, algorithm)
        filled = widest.blocks * widest.lanes * _VECTOR * (1 if algorithm == "one_shot" else world)
        nbytes = min(filled, native.capacity(algorithm))
        yield native.plan(nbytes, algorithm), dtype, nbytes // dtype.itemsize - 3
    one_block = Plan(widest.algorithm, 1, 32)
    a_lap = native.layout.two_shot_capacity(one_block.blocks)
    yield one_block, dtype, (a_lap + a_lap // 2) // dtype.itemsize


def _call(native: NativePath, case: _Case) -> None:
    native.all_reduce(case.x, case.out, case.plan)


def _compare(native: NativePath, cases: list[_Case], mode: str) -> Reason:
    if cases[0].x.is_cuda:
        torch.cuda.synchronize(cases[0].x.device)
    native.check()
    for case in cases:
        wrong = int((case.out != case.expected).sum())
        if wrong:
            shape = f"{case.plan.blocks} blocks of {case.plan.lanes}"
            what = f"{mode} {case.plan.name} of {case.x.dtype}, {shape}"
            return Reason(Code.KERNEL_MISMATCH, f"{what}: {wrong} of {case.x.numel()} elements")
    return Reason(Code.OK)


def _case(
    world: int,
    rank: int,
    device: torch.device,
    turn: int,
    plan: Plan,
    dtype: torch.dtype,
    elements: int,
) -> _Case:
    """Integers of up to 5 bits: their sums are exact in every dtype, in every order."""
    at = torch.arange(elements, device=device, dtype=torch.int32)
    by_rank = [(at * 7 + r * 13 + turn * 17) % 31 + 1 for r in range(world)]
    x = by_rank[rank].to(dtype)
    expected = torch.stack(by_rank).sum(0).to(dtype)
    return _Case(plan, x, torch.full_like(x, -1.0), expected)
