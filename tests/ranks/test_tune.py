# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`pyallreduce tune`, and groups that start with what it stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyallreduce.config import Config
from pyallreduce.launch import Placement, launch
from pyallreduce.shipped import HOST
from pyallreduce.table import MAX_BYTES, Entry, Table
from pyallreduce.topology import probe
from pyallreduce.tuned import Machine, load, machine_of, save

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]

KIB = 1 << 10
LEAVES = Table((Entry(4 * KIB, "two_shot", 1, 64), Entry(MAX_BYTES, "nccl")), "tuned")
OTHER = Table((Entry(MAX_BYTES, "two_shot"),), "tuned")


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def here(world: int) -> Machine:
    return machine_of([probe(rank, world, None, Config()) for rank in range(world)])


def stored(path: Path, table: Table, world: int = 2) -> str:
    save(here(world), table, path)
    return str(path)


def dispatch(*files: str, invariant: bool = False) -> list[dict[str, Any]]:
    options = {"files": files, "invariant": invariant}
    answers = launch("tune_targets:dispatch", options, Placement(2, 0), deadline_s=90)
    assert answers[0] == answers[1]  # whatever a rank has of its own
    assert all(answer["right"] and answer["forced"] for answer in answers)
    return answers


def test_tune_stores_a_table_that_the_next_start_uses(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    start = (
        "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
        "from pyallreduce.cli import main; main()"
    )
    arguments = ("tune", "--device", "cpu", "--ranks", "2", "-e", "8K", "--seconds", "30")
    done = subprocess.run(
        [sys.executable, "-c", start, json.dumps(sys.path), *arguments, "--output", str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4/4 8192 bytes" in done.stdout  # progress
    assert f"stored in {path}" in done.stdout
    assert "sizes measured" not in done.stdout  # all were
    table = load(here(2), path)
    assert table is not None
    assert table.entry(MAX_BYTES) == HOST.entry(MAX_BYTES)  # as 8 KiB are no measure for
    (answer, _) = dispatch(str(path), str(path))
    assert answer["table"][0].startswith("tuned table for 2 ranks")
    assert len(answer["table"]) == 1 + len(table.entries)


def test_sizes_that_the_table_gives_to_the_fallback(tmp_path: Path) -> None:
    file = stored(tmp_path / "tuning.json", LEAVES)
    (answer, _) = dispatch(file, file)
    assert answer["plans"] == ["two_shot", "nccl"]
    assert answer["accepts"] == [True, False]
    assert answer["one_order"] is False
    assert (answer["native"], answer["fallbacks"]) == (1, {"SIZE_POLICY": 1})


def test_batch_invariant_groups_leave_nothing(tmp_path: Path) -> None:
    file = stored(tmp_path / "tuning.json", LEAVES)
    (answer, _) = dispatch(file, file, invariant=True)
    assert answer["plans"] == ["two_shot", "one_shot"]
    assert answer["one_order"] is True
    assert (answer["native"], answer["fallbacks"]) == (2, {})


@pytest.mark.parametrize("second", ["other", "missing", "foreign", "broken", "off"])
def test_ranks_that_do_not_have_the_same_table_use_none(tmp_path: Path, second: str) -> None:
    first = stored(tmp_path / "first.json", LEAVES)
    path = tmp_path / "second.json"
    if second == "other":
        stored(path, OTHER)
    elif second == "foreign":
        stored(path, LEAVES, world=3)
    elif second == "broken":
        path.write_text("{", encoding="utf-8")
    file = "off" if second == "off" else str(path)
    (answer, _) = dispatch(*((file, first) if second == "missing" else (first, file)))
    assert answer["table"][0].startswith("shipped table")
    assert (answer["native"], answer["fallbacks"]) == (2, {})
