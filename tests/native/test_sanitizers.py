# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The host target under the sanitizers, ranks as threads; each with a negative control."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.programs import ROOT, build, run


@pytest.fixture(autouse=True)
def tools(needs: Callable[..., None]) -> None:
    needs("g++")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """thread_ranks under each sanitizer, built when it is first asked for."""
    built: dict[str, Path] = {}

    def program(sanitizer: str) -> Path:
        if sanitizer not in built:
            checks = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-Wno-tsan")
            float_alone = ("-DFLOAT_ALONE", f"-I{ROOT / 'tests/native/small'}")
            to = tmp_path_factory.mktemp("sanitized")
            built[sanitizer] = build(to, "thread_ranks", ("-O1", "-g", *checks, *float_alone))
        return built[sanitizer]

    return program


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_ranks_as_threads_are_clean(programs: Callable[[str], Path], sanitizer: str) -> None:
    result = run(programs(sanitizer))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "0 wrong\n"


@pytest.mark.timeout(600)
def test_a_planted_race_is_found(programs: Callable[[str], Path]) -> None:
    result = run(programs("thread"), "race")
    assert result.returncode != 0
    assert "data race" in result.stderr
