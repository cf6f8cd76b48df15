# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""bench/eager_host.py: every backend has its turns, and wrong sums are not passed over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "eager_host.py"


def run(output: Path, *names: str) -> subprocess.CompletedProcess[str]:
    options = ("--device", "cpu", "--ranks", "2", "--turns", "2", "--bytes", "2048")
    command = [sys.executable, str(SCRIPT), str(output), *options, *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_every_backend_of_the_device_has_its_turns(tmp_path: Path) -> None:
    output = tmp_path / "eager.json"
    result = run(output)
    assert result.returncode == 0, result.stderr
    found = json.loads(output.read_text(encoding="utf-8"))
    assert {"pyallreduce auto", "gloo default"} <= set(found["times_us"])
    assert all(len(times) == 2 and min(times) > 0 for times in found["times_us"].values())
    assert set(found["wrong"].values()) == {0}


def test_wrong_sums_are_told(tmp_path: Path) -> None:
    result = run(tmp_path / "eager.json", "pyallreduce:auto", "fake:wrong")
    assert result.returncode == 1
    told = [line for line in result.stdout.splitlines() if "WRONG" in line]
    assert [line.split()[0] for line in told] == ["fake"]
