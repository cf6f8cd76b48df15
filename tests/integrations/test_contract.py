# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The contract check, on a source tree written here; SGLang's where its files are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from engines import leave_out

from pyallreduce.integrations.contract import SGLANG, Contract, problems

SOURCE = """
FLAG = True

class Slot:
    def take(self, tensor, *, name=""):
        from somewhere import Maker
        self.comm = Maker(tensor)

def free():
    return FLAG
"""
HERE = Contract(
    engine="Engine",
    first=(1, 2),
    last=(1, 4),
    mentions={
        "a.py:": ("FLAG",),
        "a.py:Slot.take": ("tensor", "name", "Maker", "comm"),
        "a.py:Slot": (),
        "a.py:free": ("FLAG",),
    },
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text(SOURCE)
    return tmp_path


@pytest.mark.parametrize("version", ["1.2.0", "1.4.9", "1.3.0rc1", "1.4.0.dev1+g123", "1.3"])
def test_a_release_that_is_known(root: Path, version: str) -> None:
    assert problems(HERE, version, root) == []


@pytest.mark.parametrize("version", ["1.1.9", "1.5.0", "2.0", "dev", ""])
def test_a_version_that_is_not(root: Path, version: str) -> None:
    found = problems(HERE, version, root)
    assert len(found) == 1
    assert "1.2 to 1.4" in found[0] or "can't be read" in found[0]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("self.comm", "self.other", "a.py:Slot.take does not mention comm"),
        ("tensor", "x", "does not mention tensor"),
        ("def free", "def bound", "a.py has no free"),
        ("class Slot", "class Place", "a.py has no Slot.take; a.py has no Slot"),
        ("FLAG", "flag", "does not mention FLAG"),
        ("def take", "def take(", "a.py can't be read"),
    ],
)
def test_a_source_that_differs(root: Path, old: str, new: str, told: str) -> None:
    (root / "a.py").write_text(SOURCE.replace(old, new))
    assert told in "; ".join(problems(HERE, "1.3", root))


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    assert "a.py can't be read" in problems(HERE, "1.3", tmp_path)


@pytest.mark.parametrize("version", ["0.5.13", "0.5.16", "0.5.23"])
def test_sglang(version: str) -> None:
    """Each folder of `TEST_SGLANG_FOLDERS` holds `sglang/`, unpacked from its wheel."""
    folders = [f for f in os.environ.get("TEST_SGLANG_FOLDERS", "").split(os.pathsep) if f]
    root = next((Path(f) / "sglang" for f in folders if f.endswith(f"sglang-{version}")), None)
    if root is None:
        leave_out(f"SGLang {version} is not here: name sglang-{version} in TEST_SGLANG_FOLDERS")
    assert problems(SGLANG, version, root) == []
