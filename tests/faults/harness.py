# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Run cases of the fault matrix in processes of their own and collect what the survivors say."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cases import Case

from pyallreduce.launch import LaunchError, Placement, launch

__all__ = ["Outcomes", "run"]

Outcomes = dict[str, dict[int, dict[str, Any]]]
_STOP_S = 3.0
_DUMP_S = 10.0  # before the deadline
_LETHAL_DUMP_S = 4.0  # again and again: the launcher ends survivors 5 s after a death
HERE = str(Path(__file__).parent)


def run(
    cases: Sequence[Case],
    gpus: int,
    deadline_s: float,
    on_end: Callable[[str, Outcomes], None] = lambda _name, _outcomes: None,
) -> Outcomes:
    """Case name to rank to outcome. Cases that end a group must come alone.

    Args:
        on_end: called with (name, outcomes so far) when all ranks are through with a case that is
            not lethal.

    Raises:
        LaunchError: the ranks did not end in time, or one failed in a way that no case asked for.
    """
    listener = _Listener(cases, on_end)
    if HERE not in sys.path:
        sys.path.insert(0, HERE)
    placement = Placement(cases[0].ranks, gpus)
    options: dict[str, Any] = {
        "cases": [{**c.as_json(), "name": c.name, "lethal": c.lethal} for c in cases],
        "late_s": _LETHAL_DUMP_S if cases[0].lethal else deadline_s - _DUMP_S,
    }
    with tempfile.TemporaryDirectory() as folder:
        options["folder"] = folder
        try:
            launch(
                "fault_targets:run", options, placement, deadline_s=deadline_s, on_report=listener
            )
        except LaunchError as error:
            if not cases[0].lethal:
                ended = ", ".join(f"{name} ({len(o)})" for name, o in listener.outcomes.items())
                message = f"{error}\nended so far (by how many ranks): {ended}"
                raise LaunchError(message + _last_words(folder)) from error
            # Who died is planned; pytest shows it beside a complaint.
            print(f"{error}{_last_words(folder)}", file=sys.stderr)
    return listener.outcomes


def _last_words(folder: str) -> str:
    """What ranks that ended inside a case had written to standard error in it."""
    written = {file.name: file.read_text(errors="replace") for file in Path(folder).iterdir()}
    return "".join(f"\n{rank} wrote:\n{text}" for rank, text in sorted(written.items()) if text)


class _Listener:
    """Hears the ranks; continues one that stopped itself, and ends it when all others are done."""

    def __init__(self, cases: Sequence[Case], on_end: Callable[[str, Outcomes], None]) -> None:
        self.outcomes: Outcomes = {}
        self._on_end = on_end
        self._ranks = cases[0].ranks
        self._stopped = 0

    def __call__(self, rank: int, report: dict[str, Any]) -> None:
        if "stopped" in report:
            self._stopped = report["stopped"]
            if not report["for_ever"]:
                threading.Timer(_STOP_S, os.kill, (self._stopped, signal.SIGCONT)).start()
                self._stopped = 0
            return
        of_case = self.outcomes.setdefault(report["case"], {})
        if "usable" in report:
            of_case[rank] |= report["usable"]
            if len(of_case) == self._ranks and all("usable" in seen for seen in of_case.values()):
                self._on_end(report["case"], self.outcomes)
            return
        of_case[rank] = report["outcome"]
        if self._stopped and len(of_case) == self._ranks - 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._stopped, signal.SIGKILL)
