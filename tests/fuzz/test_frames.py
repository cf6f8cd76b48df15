# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""A short fuzz of the frame decoder, and its negative control; bench/results/ has the long one."""

from __future__ import annotations

import importlib.util
import os

import pytest

from tests.fuzz.frames import check_frame, examples, fuzz, whole


@pytest.fixture
def fuzzer() -> None:
    if importlib.util.find_spec("atheris") is None:
        tell = pytest.fail if os.environ.get("TEST_REQUIRE_TOOLS") == "1" else pytest.skip
        tell("needs atheris: pip install '.[fuzz]'")


@pytest.mark.usefixtures("fuzzer")
@pytest.mark.timeout(300)
def test_no_frame_breaks_the_decoder() -> None:
    report = fuzz(50_000, seconds=280)
    assert report.clean, report.text
    assert report.frames >= 90_000
    assert report.edges > 50


@pytest.mark.usefixtures("fuzzer")
@pytest.mark.timeout(300)
def test_a_planted_fault_is_found() -> None:
    report = fuzz(50_000, plant=True, seconds=280)
    assert not report.clean
    assert "IndexError" in report.text


def test_any_choice_is_read_or_refused() -> None:
    """Every value of every byte of the headers and of the first fields behind them."""
    check = check_frame()
    for frame in examples():
        for at in range(60):
            for value in range(256):
                check(whole(frame[:at] + bytes([value]) + frame[at + 1 :]))
