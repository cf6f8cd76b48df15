# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The fault matrix on the host target: real signals, separate processes, survivors' outcomes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cases import Case, judge, lethal, of_three, survivable
from harness import Outcomes, run

pytestmark = pytest.mark.ranks
# Of the cases that need ranks of their own, or three seconds: enough to see every kind of end.
# With the quick ones they are done within a minute (`-m "not slow"`).
FAST = {
    *(("kill", "steady", 1), ("kill", "open", 0), ("stop", "inside", 0), ("stop", "edges", 1)),
    *(("stop 3 s", "edges", 0), ("stop 3 s", "inside", 1)),
}


def named(case: Case) -> object:
    quick = not case.lethal and case.fault != "stop 3 s"
    slow = not quick and (case.fault, case.stage, case.victim) not in FAST
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    """Of the chosen cases that leave the group usable: they share one set of ranks."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    chosen = [item.callspec.params.get("case") for item in items if hasattr(item, "callspec")]
    return run([case for case in survivable() if case in chosen], 0, 170)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("case", [named(case) for case in survivable()])
def test_a_fault_that_the_group_survives(case: Case, outcomes: Outcomes) -> None:
    assert judge(case, outcomes.get(case.name, {})) == []


@pytest.mark.parametrize("case", [named(case) for case in lethal()])
def test_a_fault_that_ends_the_group(case: Case) -> None:
    assert judge(case, run([case], 0, 60).get(case.name, {})) == []


@pytest.fixture(scope="module")
def of_three_ranks() -> Outcomes:
    return run(of_three(), 0, 110)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in of_three()])
def test_a_fault_that_a_group_of_three_survives(case: Case, of_three_ranks: Outcomes) -> None:
    assert judge(case, of_three_ranks.get(case.name, {})) == []


@pytest.mark.parametrize("stage", ["inside", "facts", pytest.param("open", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_a_fault_that_ends_a_group_of_three(fault: str, stage: str) -> None:
    case = Case(fault, stage, 1, 3)
    assert judge(case, run([case], 0, 60).get(case.name, {})) == []


def test_the_matrix_has_a_hundred_cases() -> None:
    names = [case.name for case in (*survivable(), *lethal())]
    assert len(set(names)) == len(names) >= 100


def test_a_wrong_value_a_silent_rank_and_an_untyped_error_are_found() -> None:
    case = Case("torn", "steady", 0)
    fine = {"end": "right", "text": "", "wrong": 0, "peer": -1, "backend": "native", "code": "OK"}
    fine = {**fine, "took": 0.0, "log": "", "usable": True, "usable_s": 0.1}
    assert judge(case, {0: fine, 1: fine}) == []
    assert judge(case, {0: fine}) == ["rank 1 said nothing"]
    late = {"usable_s": 3.0}
    for broken in ({"wrong": 3}, {"end": "ValueError"}, {"backend": "nccl"}, {"usable": 0}, late):
        assert len(judge(case, {0: fine, 1: {**fine, **broken}})) >= 1
