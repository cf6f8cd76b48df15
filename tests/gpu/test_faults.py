# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""A subset of the fault matrix on two GPUs, and what only a GPU has: graphs, a context to keep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pyallreduce.launch import Placement, launch

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
sys.path.insert(0, str(Path(__file__).parent))
from cases import Case, judge
from harness import Outcomes, run

pytestmark = [pytest.mark.gpu(2), pytest.mark.timeout(200)]
SURVIVABLE = [
    Case("stop 3 s", "edges", 1),
    Case("stop 3 s", "inside", 0),
    *(Case("exception", stage, 1) for stage in ("offers", "open", "edges", "calls", "steady")),
    *(Case(fault, "steady", 0) for fault in ("skip", "size", "dtype", "algorithm", "tag")),
    Case("two at once", "steady", 1),
    *(Case(fault, "startup", 0) for fault in ("dropped", "mirrored", "corrupted", "delayed")),
    *(Case(fault, "steady", 1) for fault in ("dropped", "corrupted", "torn", "delayed")),
    *(Case(fault, "replay", 1) for fault in ("stop 3 s", "skip", "size", "tag", "corrupted")),
]
LETHAL = [
    *(Case("kill", "inside", 0), Case("kill", "steady", 1), Case("kill", "replay", 1)),
    Case("stop", "steady", 0),
]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return run(SURVIVABLE, 2, 150)


@pytest.mark.parametrize("case", SURVIVABLE, ids=lambda case: case.name)
def test_a_fault_that_the_group_survives(case: Case, outcomes: Outcomes) -> None:
    assert judge(case, outcomes.get(case.name, {})) == []


@pytest.mark.parametrize("case", LETHAL, ids=lambda case: case.name)
def test_a_fault_that_ends_the_group(case: Case) -> None:
    assert judge(case, run([case], 2, 60).get(case.name, {})) == []


def targets(name: str, options: dict[str, Any]) -> list[Any]:
    return launch(name, options, Placement(2, 2), deadline_s=120)


def test_a_stopped_graph_drains_and_nccl_and_matmul_go_on_in_the_same_process() -> None:
    for seen in targets("fault_gpu_targets:stopped_graph", {}):
        assert seen["end"] == "AllReduceAborted"
        assert seen["poisoned"]
        assert seen["drained_s"] < 0.5  # 50 replays of 20 calls, each with a deadline of a second
        assert seen["nccl"]
        assert seen["matmul"]
        assert seen["usable_s"] < 2
        assert seen["recovered"]
        assert seen["vetoed"] == "nccl"
        assert seen["drained when vetoed"]
        assert seen["by nccl"]


def test_no_start_is_vetoed_and_validation_is_quick() -> None:
    for seen in targets("life_targets:starts", {"starts": 10}):
        assert (seen["vetoes"], seen["wrong"]) == ([], 0)
        assert sorted(seen["validation_ms"])[5] < 300


def test_a_stall_is_named_by_the_usual_notice_and_ends_at_its_deadline() -> None:
    seen, _ = targets("life_targets:stall", {"timeout_ms": 6_000})
    assert "rank 0 has waited 5.0 s for rank 1 in call " in seen["line"]
    assert 5.0 <= seen["noticed_s"] < 5.5
    assert "rank 0 waited 6.0 s for rank 1 (signature, " in seen["ended"]
    assert 6.0 <= seen["ended_s"] < 6.5


def test_epochs_cross_their_wrap() -> None:
    assert targets("life_targets:wrap", {"before": 6}) == [[True] * 12] * 2
