# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Live checks at start-up: the production launch, slab and shapes, before anybody hears "ready".

First every directed edge by a ping-pong of resident kernels, then every kernel in use on payloads
that name rank, position and turn, compared bit for bit: eager, and on a GPU as a graph's replay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyallreduce.errors import AllReduceAborted, CallMismatch, PyallreduceError
from pyallreduce.native import Edge, NativePath
from pyallreduce.policy import AlgorithmName
from pyallreduce.reasons import Code, Reason

__all__ = ["edges", "first_calls"]

_ROUNDS = 8
_ELEMENTS = 4099  # several blocks, and a tail
_ALGORITHMS: tuple[AlgorithmName, ...] = ("one_shot", "two_shot")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SOUND, _SILENT = 1, 2  # csrc/protocol/slab.h, enum EdgeState


def edges(native: NativePath, rank: int, nonce: bytes) -> Reason:
    """OK, or the broken edge that this rank knows most about. Every rank of the group must call."""
    native.prove()
    try:
        found = native.ping_pong(_ROUNDS, int.from_bytes(nonce[:4], "little"))
    except (PyallreduceError, RuntimeError) as error:
        return Reason(Code.STAGE_FAILED, str(error))
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
    """One kernel: its arguments, and what must come out."""

    algorithm: AlgorithmName
    x: torch.Tensor
    out: torch.Tensor
    expected: torch.Tensor


def first_calls(native: NativePath, rank: int, device: torch.device) -> Reason:
    """OK, or why this rank vetoes the native path. Every rank of the group must call it."""
    native.prove()
    try:
        cases = [
            _case(native.limits.world, rank, device, dtype, algorithm, turn)
            for turn, (dtype, algorithm) in enumerate((d, a) for d in _DTYPES for a in _ALGORITHMS)
        ]
        veto = _eager(native, cases)
        if veto.code is Code.OK and device.type == "cuda":
            veto = _replay(native, cases)
    except CallMismatch as error:
        return Reason(Code.KERNEL_MISMATCH, str(error))
    except AllReduceAborted as error:
        return Reason(Code.KERNEL_TIMEOUT, str(error))
    except (PyallreduceError, RuntimeError) as error:
        return Reason(Code.STAGE_FAILED, str(error))
    return veto


def _eager(native: NativePath, cases: list[_Case]) -> Reason:
    for case in cases:
        _call(native, case)
    return _compare(native, cases, "eager")


def _replay(native: NativePath, cases: list[_Case]) -> Reason:
    """The same as one graph, on other payloads than those it was captured with."""
    graph = torch.cuda.CUDAGraph()
    # Other threads of the program may use CUDA meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for case in cases:
            _call(native, case)
    native.prove()  # the capture asked for patience
    for case in cases:
        case.x.neg_()
        case.expected.neg_()
        case.out.fill_(-1.0)
    graph.replay()
    return _compare(native, cases, "graph")


def _call(native: NativePath, case: _Case) -> None:
    nbytes = case.x.numel() * case.x.element_size()
    native.all_reduce(case.x, case.out, native.plan(nbytes, case.algorithm))


def _compare(native: NativePath, cases: list[_Case], mode: str) -> Reason:
    if cases[0].x.is_cuda:
        torch.cuda.synchronize(cases[0].x.device)
    native.check()
    for case in cases:
        wrong = int((case.out != case.expected).sum())
        if wrong:
            what = f"{mode} {case.algorithm} of {case.x.dtype}"
            return Reason(Code.KERNEL_MISMATCH, f"{what}: {wrong} of {_ELEMENTS} elements")
    return Reason(Code.OK)


def _case(
    world: int,
    rank: int,
    device: torch.device,
    dtype: torch.dtype,
    algorithm: AlgorithmName,
    turn: int,
) -> _Case:
    """Integers of up to 5 bits: their sums are exact in every dtype, in every order."""
    at = torch.arange(_ELEMENTS, device=device, dtype=torch.int64)
    by_rank = [((at * 7 + r * 13 + turn * 17) % 31 + 1).to(dtype) for r in range(world)]
    x = by_rank[rank].contiguous()
    expected = torch.stack([t.float() for t in by_rank]).sum(0).to(dtype)
    return _Case(algorithm, x, torch.full_like(x, -1.0), expected)
