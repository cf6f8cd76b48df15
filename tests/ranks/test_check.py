# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`pyallreduce check` and `bench` as users call them, with ranks of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ranks
_DEADLINE_S = 100


def pyallreduce(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    # From this process's path, as `launch` does, so that no working directory gets in the way.
    start = (
        "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
        "from pyallreduce.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", start, json.dumps(sys.path), *arguments],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        env={**os.environ, **environ},
        check=False,
    )


def test_check_passes(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    done = pyallreduce(
        *("check", "--quick", "--ranks", "2", "--device", "cpu", "--json", str(path))
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "special values" in done.stdout
    assert "PASS: " in done.stdout.splitlines()[-1]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["passed"] is True
    assert content["decision"]["backend"] == "native"
    seen = {(line["algorithm"], line["dtype"]) for line in content["lines"]}
    dtypes = ("float32", "float16", "bfloat16")
    assert seen == {(a, d) for a in ("one_shot", "two_shot", "auto") for d in dtypes}


def test_check_fails_when_one_bit_is_wrong() -> None:
    arguments = ("check", "--quick", "--ranks", "2", "--device", "cpu", "--inject-wrong-bit")
    done = pyallreduce(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL: " in done.stdout.splitlines()[-1]
    assert "elements are wrong, first at" in done.stdout


def test_check_verifies_the_fallback_too() -> None:
    arguments = ("check", "--quick", "--ranks", "2", "--device", "cpu")
    done = pyallreduce(*arguments, PYALLREDUCE_BACKEND="nccl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gloo: FORCED_NCCL" in done.stdout.splitlines()[-1]


def test_bench_writes_its_records(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    sweep = ("-b", "1K", "-e", "4K", "-f", "4", "-n", "2", "-w", "1", "--samples", "3")
    place = ("--ranks", "2", "--device", "cpu", "-J", str(path))
    done = pyallreduce("bench", *sweep, *place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# Out of bounds values : 0 OK" in done.stdout
    records = json.loads(path.read_text(encoding="utf-8"))["records"]
    algorithms = ["auto", "one_shot", "two_shot", "default"]
    assert [(r["bytes"], r["algorithm"]) for r in records] == [
        (nbytes, algorithm) for nbytes in (1024, 4096) for algorithm in algorithms
    ]
    assert all(r["verified"] and r["us"] > 0 and r["us_p99"] >= r["us"] for r in records)
