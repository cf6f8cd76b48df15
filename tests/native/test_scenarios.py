# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What the protocol promises, scenario by scenario, over weak memory with yields and delays: plain,
under ThreadSanitizer, and under AddressSanitizer with UBSan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.programs import SCENARIOS, STIRRED, build_scenarios, run

FLAVOURS = {
    "plain": ("-O1",),
    "thread": ("-O1", "-g", "-fsanitize=thread", "-fno-sanitize-recover=all", "-Wno-tsan"),
    "address": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}


@pytest.fixture(autouse=True, scope="module")
def tools(needs: Callable[..., None]) -> None:
    needs("g++")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each flavour of the program, built when it is first asked for."""
    built: dict[str, Path] = {}

    def program(flavour: str) -> Path:
        if flavour not in built:
            built[flavour] = build_scenarios(tmp_path_factory.mktemp(flavour), FLAVOURS[flavour])
        return built[flavour]

    return program


def holds(program: Path, scenario: str, seed: int) -> None:
    result = run(program, scenario, str(seed))
    assert result.returncode == 0, f"seed {seed}: {result.stdout}{result.stderr}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_holds(programs: Callable[[str], Path], flavour: str, scenario: str) -> None:
    holds(programs(flavour), scenario, seed=1)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", STIRRED)
def test_calls_are_right_under_any_seed(programs: Callable[[str], Path], scenario: str) -> None:
    for seed in range(2, 8):
        holds(programs("plain"), scenario, seed)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scenario", STIRRED)
def test_calls_are_right_under_many_seeds(programs: Callable[[str], Path], scenario: str) -> None:
    for seed in range(100, 300):
        holds(programs("plain"), scenario, seed)


@pytest.mark.timeout(600)
def test_every_scenario_is_run(programs: Callable[[str], Path]) -> None:
    assert tuple(run(programs("plain")).stdout.split()) == SCENARIOS


@pytest.mark.timeout(600)
def test_without_the_fence_of_a_call_the_protocol_fails(tmp_path: Path) -> None:
    """The negative control of weak_memory.h, and of the stated assumption: re-arming that is still
    under way when the next call pushes destroys data."""
    program = build_scenarios(tmp_path, ("-O1", "-DFENCES_DO_NOTHING"))
    assert run(program, "smoke").returncode == 0
    assert any(
        run(program, "sequences", str(seed), deadline_ms=2_000).returncode for seed in range(1, 11)
    )
