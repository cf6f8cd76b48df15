# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What is asked of processes that end meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.native.programs import build, run


def test_a_process_that_is_reaped_while_it_is_asked_about_throws_nothing(
    tmp_path: Path, needs: Callable[..., None]
) -> None:
    needs("g++")
    result = run(build(tmp_path, "reaped", sources=["csrc/host/process.cpp"]))
    assert result.returncode == 0, result.stdout + result.stderr
