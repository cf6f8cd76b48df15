# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The native test programs: how they are built, and which scenarios there are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ROOT", "SCENARIOS", "STIRRED", "build", "build_scenarios", "run"]

ROOT = Path(__file__).parents[2]
SOURCES = ("csrc/layout.cpp", "csrc/portion.cpp", "csrc/rank.cpp", "csrc/host/host_rank.cpp")
# tests/native/scenarios/ says what each of them is.
SCENARIOS = (
    "absent",
    "another_is_absent",
    "apart",
    "asked_again",
    "chunks",
    "deadline",
    "drained",
    "epochs_differ",
    "generations",
    "host_stop",
    "laps",
    "mismatch",
    "mismatch_beside_silence",
    "no_result_of_half_a_sum",
    "notice",
    "one_ahead",
    "order",
    "overlap",
    "patience",
    "ping_pong",
    "ping_pong_into_a_mirror",
    "ping_pong_of_garbage",
    "refusal",
    "refusal_then_replay",
    "sequences",
    "silent_from_the_second_lap",
    "smoke",
    "stale_stop",
    "told_by_a_peer",
    "values",
    "wrap",
)
# Sequences of calls, where the interleavings are: run with several seeds.
STIRRED = ("sequences", "chunks", "laps", "one_ahead", "no_result_of_half_a_sum")


def build(
    to: Path,
    program: str,
    flags: Sequence[str] = (),
    root: Path = ROOT,
    sources: Sequence[str] = SOURCES,
) -> Path:
    """tests/native/`program`.cpp with `sources` under `root`, by default the host target's.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    native = ROOT / "tests/native"
    binary = to / program
    subprocess.run(
        [
            *("g++", "-std=c++17", "-pthread", "-Wno-unknown-pragmas", *flags),
            *(
                f"-I{root / 'csrc'}",
                f"-I{native}",
                "-o",
                str(binary),
                str(native / program) + ".cpp",
            ),
            *(str(root / source) for source in sources),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=400,  # a minute of one idle core
    )
    return binary


def build_scenarios(to: Path, flags: Sequence[str] = (), root: Path = ROOT) -> Path:
    """The scenarios, for two to four ranks, over weak memory."""
    native = ROOT / "tests/native"
    weak = (f"-I{native / 'small'}", "-include", str(native / "weak_memory.h"))
    return build(to, "scenarios", (*weak, *flags), root)


def run(
    program: Path, *arguments: str, seconds: float = 110, deadline_ms: int = 20_000
) -> subprocess.CompletedProcess[str]:
    """`deadline_ms`: of waits that should not end by it."""
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "PYALLREDUCE_TEST_DEADLINE_MS": str(deadline_ms)},
        check=False,
    )
