# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""A death is told by the dead rank's page alone: its process may take its time over its end."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from pyallreduce import _C

_WATCHERS = 7
# The watchers are given this process's own id, whose end they do not see.
_CODE = f"""
import os, signal, time
from pyallreduce import _C
page = _C.SharedMemory(4096)
born, alive = os.pipe()
child = os.fork()
if child == 0:
    try:
        watchdog = _C.Watchdog(1, page)
        os.write(alive, b"x")
        signal.alarm(60)  # should nobody end it
        signal.pause()
    finally:
        os._exit(1)
os.close(alive)
try:
    assert os.read(born, 1) == b"x", "no watchdog there"
    own = [_C.SharedMemory(4096) for _ in range({_WATCHERS})]
    watchdogs = [_C.Watchdog(2 + i, mine) for i, mine in enumerate(own)]
    for watchdog in watchdogs:
        watchdog.watch(1, os.getpid(), page)
    quiet = [_C.Quiet([page], watchdog) for watchdog in watchdogs]
    time.sleep(0.1)
    assert all(watchdog.ended() == (-1, "") for watchdog in watchdogs), "too early"
    assert all(asked() for asked in quiet), "too early"
finally:
    os.kill(child, signal.SIGKILL)
deadline = time.monotonic() + 10
while time.monotonic() < deadline and any(watchdog.ended()[0] < 0 for watchdog in watchdogs):
    time.sleep(0.01)
assert not any(asked() for asked in quiet), "a check would find nothing"
print(*(watchdog.ended()[0] for watchdog in watchdogs))
os.waitpid(child, 0)
"""


# Rank 1, in a process of its own, and rank 0's watchdog here.
_PEER = """
import os, signal, struct, subprocess, time
from pyallreduce import _C
page, own = _C.SharedMemory(4096), _C.SharedMemory(4096)
born, alive = os.pipe()
child = os.fork()
if child == 0:
    watchdog = _C.Watchdog(1, page)
    os.write(alive, b"x")
    signal.alarm(60)  # should nobody end it
    signal.pause()
os.read(born, 1)
_C.arm_record(own, 1, 60000, 5000)
watchdog = _C.Watchdog(0, own)
"""
# Rank 1 dies, and rank 0's watchdog hears of it.
_DIES = """os.kill(child, signal.SIGKILL)
deadline = time.monotonic() + 10
while watchdog.ended()[0] < 0 and time.monotonic() < deadline:
    time.sleep(0.01)"""
# Standard error is a pipe that is full; the rank's record gets a notice, and its peer dies.
_FULL = f"""{_PEER}
watchdog.watch(1, child, page)
there, here = os.pipe()
os.set_blocking(here, False)
try:
    while True:
        os.write(here, b"-" * 4096)
except BlockingIOError:
    os.set_blocking(here, True)
stderr = os.dup(2)
os.dup2(here, 2)
NOTICE = 96  # csrc/protocol/slab.h: serial, peer, phase, waited_ms
own.write(NOTICE + 4, struct.pack("<III", 1, 2, 5000))
own.write(NOTICE, struct.pack("<I", 1))
time.sleep(0.1)
before = watchdog.ended()
{_DIES}
os.set_blocking(there, False)
got = b""
while got.count(b"SIGKILL") == 0 and time.monotonic() < deadline:
    time.sleep(0.01)
    try:
        got += os.read(there, 1 << 20)
    except BlockingIOError:
        pass
watchdog.close()
os.dup2(stderr, 2)
print(before[0], watchdog.ended()[0], got.count(b"has waited 5.0 s"), got.count(b"SIGKILL"))
os.waitpid(child, 0)
"""


# A page's rank dies; the process that is said to be its own ends half a second later.
_LATE = f"""{_PEER}
process = subprocess.Popen(["sleep", "60"])
watchdog.watch(1, process.pid, page)
os.kill(child, signal.SIGKILL)
time.sleep(0.5)
process.kill()
watchdog.close()
print(process.pid)
"""


# The number of the pidfd by which rank 1 is watched is closed, or given to another file, or to a
# pidfd of a process that has ended.
_LOST = f"""{_PEER}
watchdog.watch(1, child, page)
open_ones = [n for n in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{{n}}")]
found = [int(n) for n in open_ones if "pidfd" in os.readlink(f"/proc/self/fd/{{n}}")]
if not found:
    print("no pidfd", flush=True)
    os.kill(child, signal.SIGKILL)
    os._exit(0)
number = found[0]
os.close(number)
if how == "given to a pidfd":
    another = subprocess.Popen(["true"])
    given = os.pidfd_open(another.pid)
    another.wait()
else:
    given = os.open("/dev/zero", os.O_RDONLY)  # it gets the lowest number that is free
if given != number:
    os.dup2(given, number)
if how == "closed":
    os.close(number)
time.sleep(0.5)
alive = watchdog.ended()
{_DIES}
dead = watchdog.ended()
watchdog.close()
os.waitpid(child, 0)
kept = how != "given to a file" or os.read(number, 1) == b"\\0"
print(alive[0], dead[0], kept)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["closed", "given to a file", "given to a pidfd"])
def test_who_closes_descriptors_that_are_not_its_own_kills_no_peer(how: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"how = {how!r}\n{_LOST}"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    if ran.stdout.strip() == "no pidfd":
        pytest.skip("this system has no pidfd")
    assert ran.stdout.split() == ["-1", "1", "True"], ran.stderr


def test_two_threads_may_close_one_watchdog() -> None:
    for _ in range(5):
        watchdog = _C.Watchdog(0, _C.SharedMemory(4096))
        threads = [threading.Thread(target=watchdog.close, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)


@pytest.mark.timeout(60)
def test_a_death_is_logged_at_once_and_how_when_it_is_known() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _LATE], capture_output=True, text=True, timeout=50, check=False
    )
    told, how = ran.stderr.splitlines()
    rank = f"rank 1 (process {ran.stdout.strip()})"
    assert told.startswith(f"pyallreduce: rank 0: {rank} died (how is not known) after ")
    assert how == f"pyallreduce: rank 0: how {rank} died is known now: SIGKILL."


@pytest.mark.timeout(60)
def test_a_standard_error_that_nobody_reads_stops_no_watchdog() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _FULL], capture_output=True, text=True, timeout=50, check=False
    )
    assert ran.stdout.split() == ["-1", "1", "1", "1"], ran.stderr


@pytest.mark.timeout(60)
def test_every_watchdog_hears_of_a_death_from_the_page() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _CODE], capture_output=True, text=True, timeout=50, check=False
    )
    assert ran.stdout.split() == ["1"] * _WATCHERS, ran.stderr
