# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What a captured call is a programmatic dependent of: another call of its rank, and nothing else
(csrc/cuda/cuda_rank.cpp says why)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from local_group import DEVICE, LocalGroup

pytestmark = pytest.mark.gpu
if torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
    pytest.skip("programmatic dependent launch begins with sm_90", allow_module_level=True)

PLAIN, PROGRAMMATIC = 0, 1  # cudaGraphDependencyType


class EdgeData(ctypes.Structure):
    """cudaGraphEdgeData."""

    _fields_ = (
        ("from_port", ctypes.c_ubyte),
        ("to_port", ctypes.c_ubyte),
        ("type", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte * 5),
    )


def edge_types(graph: torch.cuda.CUDAGraph) -> list[int]:
    """The types of the edges of a graph that is a chain, from its first node on."""
    major = str(torch.version.cuda).split(".", maxsplit=1)[0]
    runtime = ctypes.CDLL(f"libcudart.so.{major}")
    ask = runtime.cudaGraphGetEdges if int(major) >= 13 else runtime.cudaGraphGetEdges_v2
    handle, count = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    assert ask(handle, None, None, None, ctypes.byref(count)) == 0
    starts, ends = (ctypes.c_void_p * count.value)(), (ctypes.c_void_p * count.value)()
    data = (EdgeData * count.value)()
    assert ask(handle, starts, ends, data, ctypes.byref(count)) == 0
    following = {s: (e, d.type) for s, e, d in zip(starts, ends, data, strict=True)}
    assert len(following) == count.value, "not a chain"
    (node,) = set(starts) - set(ends)
    types = []
    while node in following:
        node, kind = following[node]
        types.append(kind)
    return types


def captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        work()
    return graph


def test_a_call_is_a_programmatic_dependent_of_a_call_of_its_rank_alone() -> None:
    group = LocalGroup(2)
    x = torch.zeros(512, dtype=torch.bfloat16, device=DEVICE)
    plan = group.plan(x, "one_shot")

    def other() -> None:
        x.add_(1)

    def ours(rank: int = 0) -> None:
        assert group.launch(rank, x, x, plan) == 0

    def work() -> None:
        other()
        ours()
        ours()
        other()
        ours()
        ours(rank=1)
        ours(rank=1)

    def twice() -> None:
        ours()
        ours()

    try:
        for _ in range(2):  # a later capture knows nothing of an earlier one
            expected = [PLAIN, PROGRAMMATIC, PLAIN, PLAIN, PLAIN, PROGRAMMATIC]
            assert edge_types(captured(work)) == expected
        assert edge_types(captured(twice)) == [PROGRAMMATIC]
    finally:
        group.close()
