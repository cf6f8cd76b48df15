# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The Communicator among processes on a GPU: IPC, CuPy, graphs, failures, streams, compile.

Each rank has a GPU of its own where there are two; on one GPU they take turns.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pyallreduce._C import device_count
from pyallreduce.launch import Placement, launch

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))


def run(target: str) -> list[Any]:
    return launch(f"gpu_targets:{target}", {}, Placement(2, min(2, device_count())), deadline_s=100)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy")
def test_cupy_arrays_on_cupys_stream() -> None:
    floats = [["cupy", "float32", True], ["cupy", "float16", True]]
    assert run("cupy_arrays") == [[*floats, [4, {"DTYPE": 1}, [0, 2, 4, 6, 8]]]] * 2


@pytest.mark.parametrize("allocator", ["", "expandable_segments:True"])
def test_graphs(monkeypatch: pytest.MonkeyPatch, allocator: str) -> None:
    if allocator:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", allocator)
    assert run("graphs") == [[0, "native"]] * 2


def test_refusal_abort_and_recovery() -> None:
    first, second = run("failures")
    assert first["refusal"][0] == "InvalidCall"
    assert second["refusal"][0] == "CallRefused"
    assert "rank 0 refused" in second["refusal"][1]
    assert first["poisoned"]
    assert first["abort"][0] == "AllReduceAborted"
    assert "for rank 1" in first["abort"][1]
    for seen in (first, second):
        assert seen["after refusal"]
        assert seen["matmul"]
        assert seen["after recovery"]


def test_two_streams_are_ordered() -> None:
    assert run("streams") == [0, 0]


@pytest.mark.skipif(device_count() < 2, reason="needs 2 GPUs: ranks that share one take turns")
def test_a_late_rank_costs_no_more_than_its_lateness() -> None:
    """A long wait looks at the host, which takes a while: the calls behind must not suffer.

    They took 330 and 1000 us where ranks kept each other late (bench/NOTES.md, entry 26), for half
    a graph at least; they take 3 and 5.
    """
    job = {"calls": 100, "times": 3, "algorithm": "one_shot"}
    _, by_bytes = launch("late:run_rank", job, Placement(2, 2), deadline_s=100)
    assert max(longest for line in by_bytes.values() for _, longest in line) < 50


def test_torch_compile_traces_the_whole_call() -> None:
    assert run("compiled") == [[True, 1]] * 2
