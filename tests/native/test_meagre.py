# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The host target on a system that interrupts it, or has no more threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.programs import build

_MEMORY = """
from pyallreduce import _C
memory = _C.SharedMemory(5 * (1 << 20) + 4096)
memory.fill(0, memory.bytes, 7)
print(memory.read(memory.bytes - 1, 1))
"""
_EDGES = """
import ctypes
from pyallreduce import _C
layout = _C.Layout(3, 4 << 20)
slabs = [_C.SharedMemory(layout.bytes) for _ in range(3)]
for slab in slabs:
    for _, offset, size, armed in layout.regions():
        slab.fill(offset, size, 255 if armed else 0)
page = _C.SharedMemory(4096)
_C.arm_record(page, 1, 300, 1000)
rank = _C.HostRank(0, layout, [slab.address for slab in slabs], page.address)
ctypes.CDLL(None).meagre_begin()
try:
    rank.ping_pong(8, 1, 0)
except RuntimeError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def meagre(tmp_path_factory: pytest.TempPathFactory, needs: Callable[..., None]) -> Path:
    needs("g++")
    return build(tmp_path_factory.mktemp("meagre"), "meagre", ("-shared", "-fPIC"), sources=())


def said(code: str, meagre: Path) -> str:
    environment = {**os.environ, "LD_PRELOAD": str(meagre), "MEAGRE_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_a_reservation_that_is_interrupted_goes_on(meagre: Path) -> None:
    assert said(_MEMORY, meagre) == r"b'\x07'"


def test_a_ping_pong_that_finds_no_thread_is_an_error_and_no_end(meagre: Path) -> None:
    assert "unavailable" in said(_EDGES, meagre)
