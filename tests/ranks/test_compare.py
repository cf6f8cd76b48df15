# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`bench --compare` with ranks: gloo beside ours, and backends that hang, raise and lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]
SMALL = ("-b", "1K", "-e", "4K", "-f", "4", "-n", "2", "-w", "1", "--samples", "3")
CPU = ("--device", "cpu", "--ranks", "2")


def bench(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    start = (
        "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
        "from pyallreduce.cli import main; main()"
    )
    alone = (sys.executable, "-c", start, json.dumps(sys.path), "bench")
    return subprocess.run(
        [*(launcher or alone), *arguments],
        capture_output=True,
        text=True,
        timeout=220,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        check=False,
    )


def test_ours_beside_gloo(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    done = bench("--compare", *CPU, *SMALL, "-o", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "eager: won" in done.stdout
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["failures"] == []
    rows = ["auto", "one_shot", "two_shot", "default"]
    assert [(r["algorithm"], r["bytes"]) for r in content["records"]] == [
        (algorithm, nbytes) for algorithm in rows for nbytes in (1024, 4096)
    ]
    assert all(r["verified"] and r["us_p99"] >= r["us"] > 0 for r in content["records"])
    assert {"machine", "versions", "commit", "command", "ranks"} <= set(content["header"])


@pytest.mark.slow
def test_a_peer_that_hangs_or_raises_costs_its_row_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    names = "pyallreduce:auto,fake"
    limits = ("--deadline", "30", "--backends", names)
    done = bench("--compare", *CPU, *SMALL, *limits, "-o", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(path.read_text(encoding="utf-8"))
    failures = {f["algorithm"]: f for f in content["failures"]}
    assert set(failures) == {"hangs", "raises"}
    assert "did not end in time" in failures["hangs"]["error"]
    assert failures["hangs"]["where"] == "eager, bfloat16, 1024 bytes"
    assert "RuntimeError: this backend always fails" in failures["raises"]["error"]
    assert "# missing: fake raises at eager, bfloat16, 1024 bytes: RuntimeError:" in done.stdout
    measured = {(r["backend"], r["algorithm"], r["verified"]) for r in content["records"]}
    assert measured == {
        ("pyallreduce", "auto", True),
        ("fake", "works", True),
        ("fake", "wrong", False),
    }


def test_under_torchrun(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    launcher = (*torchrun, "--standalone", "-m", "pyallreduce.bench")
    names = ("--backends", "pyallreduce:auto,fake:raises,gloo", "-o", str(path))
    done = bench("--compare", "--device", "cpu", *SMALL, *names, launcher=launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [f["algorithm"] for f in content["failures"]] == ["raises"]
    assert {r["backend"] for r in content["records"]} == {"pyallreduce", "gloo"}
