# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The mutants stand where they should, and the quick subset is killed: `--all` runs the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutants.__main__ import judge, main, mutated
from tests.mutants.catalogue import MUTANTS, Mutant
from tests.native.programs import ROOT, SCENARIOS


@pytest.fixture
def compiler(needs: Callable[..., None]) -> None:
    needs("g++")


def named(what: str) -> Mutant:
    return next(mutant for mutant in MUTANTS if mutant.what == what)


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 60
    assert len({mutant.what for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.what)
def test_a_mutant_has_its_place_and_its_test(mutant: Mutant) -> None:
    assert mutated(mutant) != (ROOT / mutant.path).read_text(encoding="utf-8")
    assert "\n" not in mutant.old.strip("\n"), "one line"
    if mutant.native:
        assert mutant.killer in SCENARIOS
    else:
        path, test = mutant.killer.split("::")
        assert f"def {test}(" in Path(ROOT / path).read_text(encoding="utf-8")


def test_a_mutant_whose_text_is_gone_is_an_error() -> None:
    with pytest.raises(LookupError, match="stands 0 times"):
        mutated(replace(MUTANTS[0], old="no such text"))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.timeout(900)
def test_the_quick_subset_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    quick = sum(mutant.quick for mutant in MUTANTS)
    assert capsys.readouterr().out.endswith(f"{quick} of {quick} killed\n")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.timeout(300)
def test_what_changes_nothing_survives() -> None:
    """The negative control: a mutant is not called killed for nothing."""
    harmless = replace(named("one slot"), new="constexpr uint32_t kSlots = 1 + 1;", killer="values")
    assert judge(harmless).outcome == "SURVIVED"
    same = replace(named("a stale nonce is accepted"), new=named("a stale nonce is accepted").old)
    assert judge(same).outcome == "SURVIVED"
