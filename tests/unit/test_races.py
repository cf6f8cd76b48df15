# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The variants of the races to run, and the bare build, still change what they mean to change."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import safety_cost  # noqa: E402

RACES = sorted((ROOT / "bench" / "races").glob("*.json"))


def misses(patches: list[tuple[str, str, str]]) -> list[str]:
    protocol = ROOT / "csrc" / "protocol"
    changed = [(file, old) for file, old, _ in patches if old]  # "" begins a file of its own
    return [o for file, o in changed if o not in (protocol / file).read_text(encoding="utf-8")]


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.stem)
def test_every_variant_finds_its_text(race: Path) -> None:
    variants = json.loads(race.read_text(encoding="utf-8"))
    assert {name: misses(patches) for name, patches in variants.items()} == {
        name: [] for name in variants
    }


def test_the_bare_build_finds_its_text() -> None:
    assert misses(safety_cost.PATCHES) == []


def test_a_text_that_is_gone_is_found() -> None:
    assert RACES
    assert misses([("wait.h", "not there", "")]) == ["not there"]
