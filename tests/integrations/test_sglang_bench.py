# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What bench/sglang_gpu.py takes for a sound start, and that what it packs has names."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

BENCH = Path(__file__).resolve().parents[2] / "bench"
TOKENS = {1: "24d121c51b996dbf", 16: "dff6304567fa4618"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import sglang_gpu

    return sglang_gpu


def records(name: str) -> Any:
    return json.loads((BENCH / "results" / name).read_text(encoding="utf-8"))["records"]


@pytest.mark.parametrize(
    ("file", "fault", "change"),
    [
        ("sglang-h200-2-kill.json", "kill", {"request": "answered"}),
        ("sglang-h200-2-kill.json", "kill", {"request": "without an end"}),
        ("sglang-h200-2-kill.json", "kill", {"told": ["pyallreduce carries"]}),
        ("sglang-h200-2-lost.json", "lost", {"told": []}),
        ("sglang-h200-2-lost.json", "lost", {"tokens": "others"}),
        ("sglang-h200-2-lost.json", "", {}),
    ],
)
def test_a_start_that_is_not_as_it_should_be(
    bench: ModuleType, file: str, fault: str, change: dict[str, Any]
) -> None:
    found = records(file)
    asked = SimpleNamespace(kill=fault == "kill", lost=fault == "lost")
    assert bench.sound(found, TOKENS, asked) is bool(fault), "the record itself"
    found[-1] |= change
    assert not bench.sound(found, TOKENS, asked)


def test_three_backends_and_an_own_all_reduce_that_sglang_could_not_build(
    bench: ModuleType,
) -> None:
    found, asked = records("sglang-h200-2.json"), SimpleNamespace(kill=False, lost=False)
    assert all(bench.sound(found[i : i + 2], TOKENS, asked) for i in (0, 2, 4))
    found[3]["told"] = ["Setup Custom allreduce failed with nothing"]
    assert not bench.sound(found[2:4], TOKENS, asked)


def test_what_is_packed_has_names(bench: ModuleType) -> None:
    del bench  # for the path
    import sglang_bundle

    assert all(len(Requirement(word).specifier) == 1 for word in sglang_bundle.WHEELS.split())
