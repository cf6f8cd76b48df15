# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The protocol's models, each explored to the end by SPIN, and weakened variants that must fail.

The header of each model says what it proves and assumes. `spin` and gcc are not installed from
here. By hand: `spin -DN=3 -a one_shot.pml && gcc -DSAFETY -o pan pan.c && ./pan -m400000`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DEPTH = 400_000  # steps of one path; a longer one is an error, not a silent cut
MEGABYTES = 4_000
DEADLOCK, ASSERTION = "invalid end state", "assertion violated"


@dataclass(frozen=True)
class Outcome:
    """Of one exploration: the states that were seen, and the error that ended it, if any."""

    states: int
    error: str


def explore(
    model: str, defines: str, folder: Path, *, seconds: int, optimise: int, deadlocks: bool = True
) -> Outcome:
    """Every state of `model` under `defines`, such as "N=3 ONE_SLOT"."""
    flags = [f"-D{define}" for define in defines.split()]
    steps = [
        ["spin", *flags, "-a", str(HERE / f"{model}.pml")],
        [
            *("gcc", f"-O{optimise}", "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEGABYTES}"),
            *("-opan", "pan.c"),
        ],
        ["./pan", f"-m{DEPTH}", *([] if deadlocks else ["-E"])],
    ]
    for step in steps:
        done = subprocess.run(
            step, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^pan:1: (.*?)(?: \(at depth|$)", done.stdout, re.MULTILINE)
    states = re.search(r"(\S+) states, stored", done.stdout)
    assert states is not None, done.stdout
    assert "max search depth too small" not in done.stdout
    assert "Search not completed" not in done.stdout or found, done.stdout
    return Outcome(int(float(states[1])), found[1] if found else "")


SOUND = [
    ("one_shot", "N=2 V=2 CALLS=5"),
    ("one_shot", "N=3 V=1 CALLS=3"),
    ("one_shot", "N=3 V=2 CALLS=4 ORDERED"),
    ("one_shot", "N=4 V=1 CALLS=3 ORDERED"),
    ("two_shot", "N=2 V=2 CALLS=3"),
    ("two_shot", "N=2 V=1 CALLS=4 MIXED"),
    ("two_shot", "N=3 V=1 CALLS=3 ORDERED MIXED"),
    ("two_shot", "N=4 V=1 CALLS=2 ORDERED"),
    ("laps", "N=2 WHOLE"),
    ("laps", "N=2 WHOLE PARKS"),
    ("laps", "N=2 LAPS=4 IN_ORDER"),
    ("laps", "N=2 LEAD=2 LAG=2 IN_ORDER"),
    ("laps", "N=3 WHOLE IN_ORDER"),
    ("laps", "N=3 WHOLE IN_ORDER PARKS"),
    ("signature", "N=2 CALLS=3"),
    ("signature", "N=3 CALLS=2"),
    ("signature", "N=3 CALLS=2 TELL_NOBODY NO_REFUSAL"),
    ("wait", "N=2 CALLS=3"),
    ("wait", "N=2 CALLS=3 STALL"),
    ("wait", "N=2 CALLS=3 KILL"),
    ("wait", "N=3 CALLS=1 KILL"),
    ("wait", "N=3 CALLS=1"),
    ("native", "N=2 CALLS=3"),
    ("native", "N=2 CALLS=2 GENERATIONS=3"),
    ("native", "N=3 CALLS=1"),
    ("refusal", "N=2"),
    ("refusal", "N=2 REPLAY"),
    ("refusal", "N=3"),
    ("refusal", "N=3 REPLAY"),
    ("edges", "ROUNDS=7"),
]
SOUND_AND_LONG = [
    ("one_shot", "N=3 V=1 CALLS=4"),
    ("one_shot", "N=4 V=2 CALLS=4 ORDERED"),
    ("two_shot", "N=2 V=2 CALLS=4"),
    ("two_shot", "N=3 V=1 CALLS=2"),
    ("two_shot", "N=4 V=1 CALLS=3 ORDERED"),
    ("laps", "N=2"),
    ("signature", "N=4 CALLS=1"),
    ("wait", "N=3 CALLS=2 KILL"),
    ("native", "N=3 CALLS=2"),
]
WEAKENED = [
    ("one_shot", "ONE_SLOT", ASSERTION),
    ("one_shot", "NO_SIGNATURE", ASSERTION),
    ("one_shot", "SKIP_WORD", ASSERTION),
    ("one_shot", "REARM_SHORT", ASSERTION),
    ("one_shot", "NO_REARM", ASSERTION),
    ("one_shot", "REARM_EARLY", DEADLOCK),
    ("one_shot", "REARM_FLOATS", ASSERTION),
    ("two_shot", "ONE_SLOT", ASSERTION),
    ("two_shot", "NO_SIGNATURE", ASSERTION),
    ("two_shot", "RESULT_EARLY", ASSERTION),
    ("two_shot", "NO_REARM", ASSERTION),
    ("two_shot", "REARM_FLOATS", ASSERTION),
    ("two_shot", "REARM_FLOATS MIXED", ASSERTION),
    ("laps", "ONE_SLOT", ASSERTION),
    ("laps", "NO_FENCE", ASSERTION),
    ("laps", "NO_CHECK", ASSERTION),
    ("laps", "SEND_EARLY", ASSERTION),
    ("laps", "SHORT", DEADLOCK),
    ("signature", "N=2 OWN_PLACES", DEADLOCK),
    ("signature", "N=2 NO_COMPARE", ASSERTION),
    ("signature", "N=2 OUTPUT_EARLY", ASSERTION),
    ("signature", "N=2 REFUSE_SILENTLY", DEADLOCK),
    ("wait", "STALL NO_DEADLINE", DEADLOCK),
    ("wait", "KILL NO_WATCHDOG", DEADLOCK),
    ("wait", "TELL_NOBODY", DEADLOCK),
    ("wait", "PUBLISH_AFTER_ABORT", ASSERTION),
    ("wait", "NOT_STICKY", ASSERTION),
    ("wait", "UNIFORM", ASSERTION),
    ("native", "NO_SYNC", ASSERTION),
    ("native", "NO_DRAINED", ASSERTION),
    ("native", "NO_ARMED", ASSERTION),
    ("native", "EXPORT_BEFORE_FILL", ASSERTION),
    ("native", "NO_TAG", ASSERTION),
    ("refusal", "NO_RENEW", ASSERTION),
    ("refusal", "REPLAY_RUNS", ASSERTION),
    ("edges", "ONE_SLOT", ASSERTION),
]


@pytest.fixture(autouse=True)
def tools(needs: Callable[..., None]) -> None:
    needs("spin", "gcc")


def sound(model: str, defines: str, folder: Path, seconds: int) -> None:
    outcome = explore(model, defines, folder, seconds=seconds, optimise=1)
    assert outcome.error == ""
    assert outcome.states > 100, "hardly anything was explored"
    print(f"{model} {defines}: {outcome.states} states")


@pytest.mark.parametrize(("model", "defines"), SOUND)
def test_the_protocol_is_sound(model: str, defines: str, tmp_path: Path) -> None:
    sound(model, defines, tmp_path, seconds=60)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("model", "defines"), SOUND_AND_LONG)
def test_the_protocol_is_sound_at_length(model: str, defines: str, tmp_path: Path) -> None:
    sound(model, defines, tmp_path, seconds=1100)


@pytest.mark.parametrize(("model", "defines", "error"), WEAKENED)
def test_a_weakened_protocol_fails(model: str, defines: str, error: str, tmp_path: Path) -> None:
    deadlocks = error == DEADLOCK
    outcome = explore(model, defines, tmp_path, seconds=60, optimise=0, deadlocks=deadlocks)
    assert error in outcome.error


def test_every_variant_that_a_model_names_is_run() -> None:
    for path in HERE.glob("*.pml"):
        words = path.read_text(encoding="utf-8").split("Must fail: ")[1].split("*/")[0]
        named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", words))
        run = {word for model, words, _ in WEAKENED if model == path.stem for word in words.split()}
        assert named <= run, path.name
