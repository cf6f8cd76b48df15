# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Ranks that raise, die, hang or lose their starter: the starter is told, and nobody is left."""

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

pytestmark = pytest.mark.ranks

TARGETS = """
import os, threading, time
import torch
import torch.distributed as dist

from pyallreduce.errors import BackendUnavailable
from pyallreduce.reasons import Code, Reason


def add(context, options):
    context.say({"hello": context.rank})
    x = torch.tensor([context.rank + options["more"]])
    dist.all_reduce(x)
    return [int(x), os.getpid()]


def fail(context, options):
    if context.rank == 1:
        raise ValueError("rank 1 has had enough")
    threading.Event().wait()


def unfit(context, options):
    raise BackendUnavailable(Reason(Code.SLAB_SIZE, "too small"))


def die(context, options):
    if context.rank == 1:
        os._exit(3)
    threading.Event().wait()


def hang(context, options):
    context.say(os.getpid())
    threading.Event().wait()


def chatter(context, options):
    if context.rank == options["fails"]:
        raise ValueError("it has had enough")
    until = time.monotonic() + 40
    while time.monotonic() < until:
        context.say("x" * 1000)
"""


@pytest.fixture(autouse=True)
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "launch_targets.py").write_text(TARGETS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {pids}"
        time.sleep(0.05)


def test_results_come_in_rank_order() -> None:
    said: list[tuple[int, Any]] = []
    results = launch(
        *("launch_targets:add", {"more": 10}, Placement(3, 0)),
        deadline_s=90,
        on_report=lambda rank, report: said.append((rank, report)),
    )
    assert [result[0] for result in results] == [33, 33, 33]
    assert sorted(rank for rank, _ in said) == [0, 1, 2]
    assert all(report == {"hello": rank} for rank, report in said)
    assert all(gone(pid) for _, pid in results)


def test_an_exception_comes_back_as_text() -> None:
    with pytest.raises(LaunchError, match=r"rank 1: (.|\n)*ValueError: rank 1 has had enough"):
        launch("launch_targets:fail", {}, Placement(2, 0), deadline_s=90)


def test_what_the_user_can_mend_is_told_once_and_without_a_traceback() -> None:
    with pytest.raises(
        LaunchError, match=r"^rank 0, 1: BackendUnavailable: SLAB_SIZE: .*too small"
    ):
        launch("launch_targets:unfit", {}, Placement(2, 0), deadline_s=90)


def test_a_death_is_told() -> None:
    with pytest.raises(LaunchError, match="rank 1: ended with exit code 3 without a result"):
        launch("launch_targets:die", {}, Placement(2, 0), deadline_s=90)


def test_a_hang_ends_at_the_deadline_and_leaves_nobody() -> None:
    pids: list[int] = []
    with pytest.raises(LaunchError, match="rank 0, 1: did not end in time"):
        launch(
            *("launch_targets:hang", {}, Placement(2, 0)),
            deadline_s=10,
            on_report=lambda _rank, pid: pids.append(pid),
        )
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(("fails", "deadline_s"), [(None, 10), (1, 90)])
def test_reports_without_end_hold_up_no_deadline(fails: int | None, deadline_s: float) -> None:
    """Neither that of all nor that of the last words. Heard slowly: a pipe is never empty."""
    said: list[str] = []

    def hear(_rank: int, report: str) -> None:
        said.append(report)
        time.sleep(0.001)

    late = "rank 0, 1" if fails is None else "rank 0"
    with pytest.raises(LaunchError, match=f"{late}: did not end in time"):
        launch(
            *("launch_targets:chatter", {"fails": fails}, Placement(2, 0)),
            deadline_s=deadline_s,
            on_report=hear,
        )
    assert said


def test_the_ranks_of_a_killed_starter_end(targets: Path) -> None:
    start = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
        "from pyallreduce.launch import Placement, launch\n"
        "say = lambda rank, pid: print(pid, flush=True)\n"
        "launch('launch_targets:hang', {}, Placement(2, 0), deadline_s=90, on_report=say)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", start, json.dumps([str(targets), *sys.path])],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    pids = [int(starter.stdout.readline()) for _ in range(2)]
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    wait_until_gone(pids)
