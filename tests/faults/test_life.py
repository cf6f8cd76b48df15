# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Many starts, kills with restarts, forks, and the wrap of the epochs; longer by environment.

TEST_STARTS and TEST_RESTARTS set how many.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pyallreduce.launch import LaunchError, Placement, launch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
STARTS = int(os.environ.get("TEST_STARTS", "30"))
RESTARTS = int(os.environ.get("TEST_RESTARTS", "1"))
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120 + STARTS + 30 * RESTARTS)]
GONE_S = 5.0
PARENT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pyallreduce.launch import LaunchError, Placement, launch
try:
    launch("life_targets:busy", {}, Placement(2, 0), deadline_s=100,
           on_report=lambda rank, report: print(json.dumps(report), flush=True))
except LaunchError as error:
    print(json.dumps({"failed": str(error)}), flush=True)
"""


def test_no_start_is_vetoed() -> None:
    results = launch(
        "life_targets:starts", {"starts": STARTS}, Placement(2, 0), deadline_s=100 + STARTS
    )
    assert [(r["vetoes"], r["wrong"]) for r in results] == [([], 0)] * 2


def test_epochs_cross_their_wrap() -> None:
    results = launch("life_targets:wrap", {"before": 6}, Placement(3, 0), deadline_s=90)
    assert results == [[True] * 12] * 3


def test_a_stall_is_named_by_the_usual_notice_and_ends_at_its_deadline() -> None:
    seen, _ = launch("life_targets:stall", {"timeout_ms": 6_000}, Placement(2, 0), deadline_s=60)
    assert "rank 0 has waited 5.0 s for rank 1 in call " in seen["line"]
    assert 5.0 <= seen["noticed_s"] < 5.5
    assert "rank 0 waited 6.0 s for rank 1 (signature, " in seen["ended"]
    assert 6.0 <= seen["ended_s"] < 6.5


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] != "Z"
    except FileNotFoundError:
        return False


def names_in_shared_memory(pid: int) -> list[str]:
    """What a process has mapped that would outlive it in /dev/shm."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    return [line for line in maps.splitlines() if "/dev/shm/" in line]


def test_recovery_names_a_rank_that_died_behind_its_stall() -> None:
    """Who gave up on it knows of its silence alone, and could try for ever."""
    heard: list[Any] = []
    with pytest.raises(LaunchError):
        launch(
            "life_targets:dies_behind_a_stall",
            {},
            Placement(2, 0),
            deadline_s=60,
            on_report=lambda _rank, report: heard.append(report["told"]),
        )
    ((silent, dead),) = heard
    assert "waited 1.0 s for rank 1" in silent
    assert dead.startswith("PEER_DIED: ")
    assert "SIGKILL" in dead


@pytest.mark.parametrize("whom", ["a worker", "all workers", "the parent"])
def test_kill_and_restart(whom: str, tmp_path: Path) -> None:
    for _ in range(RESTARTS):
        _kill_once(whom, tmp_path)
    assert list(tmp_path.iterdir()) == []
    # And the next start works.
    launch("life_targets:busy", {"calls": 20}, Placement(2, 0), deadline_s=60)


def _kill_once(whom: str, folder: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, json.dumps(sys.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
    )
    try:
        workers = [_report(parent)["pid"] for _ in range(2)]
        assert [names_in_shared_memory(pid) for pid in workers] == [[], []]
        victims = {"a worker": workers[:1], "all workers": workers, "the parent": [parent.pid]}
        for pid in victims[whom]:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + GONE_S
        while any(alive(pid) for pid in workers):
            assert time.monotonic() < deadline, f"an orphan is left: {workers}"
            time.sleep(0.02)
        if whom != "the parent":
            assert "rank" in _report(parent)["failed"]
    finally:
        parent.kill()
        parent.wait()


def _report(parent: subprocess.Popen[str]) -> dict[str, Any]:
    assert parent.stdout is not None
    line = parent.stdout.readline()
    assert line, "the parent ended without a word"
    return dict(json.loads(line))
