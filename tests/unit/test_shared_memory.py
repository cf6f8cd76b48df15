# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What is done with shared memory, and with a rank over it, when that is closed."""

from __future__ import annotations

import collections
import itertools
import os
import signal
import struct
import subprocess
import sys

import pytest

from pyallreduce import _C
from pyallreduce.errors import CommunicatorClosed

_STATE_OFFSET = 16  # of Record, csrc/protocol/slab.h: behind the host's words
_FIELD = 7


def test_a_record_of_a_page_that_is_closed_is_not_read() -> None:
    page = _C.SharedMemory(4096)
    _C.arm_record(page, 1, 1000, 1000)
    assert _C.Record.at(page).state == 0
    quiet = _C.Quiet([page], _C.Watchdog(0, _C.SharedMemory(4096)))
    assert quiet()
    page.close()
    with pytest.raises(CommunicatorClosed):
        _C.Record.at(page)
    with pytest.raises(CommunicatorClosed):
        quiet()
    with pytest.raises(CommunicatorClosed):
        _C.arm_record(page, 1, 1000, 1000)
    with pytest.raises(CommunicatorClosed):
        _C.set_deadline(page, 1000)


def test_quiet_is_what_no_record_contradicts() -> None:
    pages = [_C.SharedMemory(4096) for _ in range(3)]
    for page in pages:
        _C.arm_record(page, 1, 1000, 1000)
    quiet = _C.Quiet(pages, _C.Watchdog(0, _C.SharedMemory(4096)))
    assert quiet()
    pages[1].write(_STATE_OFFSET, b"\1")
    assert _C.Record.at(pages[1]).state == 1
    assert not quiet()


def test_a_record_is_whole_though_its_rank_arms_it_meanwhile() -> None:
    """The child fails and arms anew, over and over, as fast as it can."""
    page = _C.SharedMemory(4096)
    _C.arm_record(page, 1, 1000, 1000)
    fields = struct.pack("<6I", *[_FIELD] * 6)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            for generation in itertools.count(1):
                page.write(_STATE_OFFSET + 16, fields)
                page.write(_STATE_OFFSET, struct.pack("<I", generation << 8 & 0xFFFFFFFF | 1))
                _C.arm_record(page, 1, 1000, 1000)
        finally:
            os._exit(1)
    try:
        seen = collections.Counter(
            (record.block, record.epoch)
            for record in (_C.Record.at(page) for _ in range(5_000_000))
            if record.state
        )
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert seen, "no failure was met"
    assert set(seen) == {(_FIELD, _FIELD)}, seen


def test_a_page_that_is_too_small_holds_no_record() -> None:
    with pytest.raises(IndexError):
        _C.Record.at(_C.SharedMemory(16))


def test_a_rank_that_is_closed_takes_no_call() -> None:
    layout = _C.Layout(2, 1 << 20)
    slabs = [_C.SharedMemory(layout.bytes) for _ in range(2)]
    page = _C.SharedMemory(4096)
    _C.arm_record(page, 1, 1000, 1000)
    rank = _C.HostRank(0, layout, [slab.address for slab in slabs], page.address)
    launch = rank.launch(64, 0, 0, 1, 32)
    assert rank.close()
    assert rank.close()
    page.close()
    calls = (rank.state, rank.report, lambda: rank.edge(1), lambda: launch(0, 0, 0, 0))
    for call in (*calls, lambda: rank.refuse(0, 0), lambda: rank.ping_pong(1, 0, 0)):
        with pytest.raises(CommunicatorClosed):
            call()


def test_without_a_standard_error_no_page_takes_its_number() -> None:
    code = (
        "import os; [os.close(n) for n in (0, 1, 2)]\n"
        "from pyallreduce import _C; p = _C.SharedMemory(4096); fd = p.offer()[2]\n"
        "q = _C.SharedMemory.open(*p.offer()); os._exit(0 if fd > 2 else 1)"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert ended.returncode == 0
