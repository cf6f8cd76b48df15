# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The host target under the sanitizers, ranks as threads; each with a negative control."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["csrc/layout.cpp", "csrc/rank.cpp", "csrc/host/host_rank.cpp"]
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def build(to: Path, sanitizer: str, *flags: str) -> Path:
    program = to / "thread_ranks"
    quiet = ["-Wno-unknown-pragmas", "-Wno-tsan"]
    subprocess.run(
        [
            *("g++", "-std=c++17", "-O1", "-g", "-pthread", f"-I{ROOT / 'csrc'}"),
            *(f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", *quiet, *flags),
            *("-o", str(program), str(ROOT / "tests/native/thread_ranks.cpp")),
            *(str(ROOT / source) for source in SOURCES),
        ],
        check=True,
        timeout=400,  # a minute of one idle core
    )
    return program


def run(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_ranks_as_threads_are_clean(tmp_path: Path, sanitizer: str) -> None:
    result = run(build(tmp_path, sanitizer))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "0 wrong\n"


@pytest.mark.timeout(600)
def test_a_planted_race_is_found(tmp_path: Path) -> None:
    result = run(build(tmp_path, "thread", "-DPLANT_A_RACE"))
    assert result.returncode != 0
    assert "data race" in result.stderr
