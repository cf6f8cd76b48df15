# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Ranks that start and close many times, that never stop by themselves, and that cross a wrap."""

from __future__ import annotations

import os
import re
import signal
import struct
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import stderr
import torch

from pyallreduce import _C, Communicator, Config
from pyallreduce.errors import AllReduceAborted
from pyallreduce.worker import Context

# The drill may be asked for more ranks than there are GPUs.
_ANYWHERE = {"slab_bytes": 1 << 20, "share_gpu": True}
_SMALL = {**_ANYWHERE, "timeout_ms": 10_000, "exchange_timeout_ms": 30_000}


def communicator(context: Context) -> Communicator:
    device = "cpu" if context.gpu is None else f"cuda:{context.gpu}"
    return Communicator(device=device, config=Config(**_SMALL))


def right(comm: Communicator, value: float, elements: int = 500) -> bool:
    x = torch.full((elements,), value + comm.rank, device=comm.device)
    y = comm.all_reduce(x)
    if comm.device.type == "cuda":
        torch.cuda.synchronize()
    comm.check()
    world = comm.world_size
    return bool((y == world * value + world * (world - 1) / 2).all())


def starts(context: Context, options: dict[str, Any]) -> dict[str, Any]:
    """Open and close; how many starts were vetoed, how many sums wrong, and ms of each start."""
    vetoes: list[str] = []
    wrong, total_ms, validation_ms = 0, [], []
    for turn in range(options["starts"]):
        since = time.perf_counter()
        with communicator(context) as comm:
            total_ms.append((time.perf_counter() - since) * 1e3)
            validation_ms.append(comm.validation_ms)
            if comm.decision.backend != "native":
                vetoes.append(str(comm.decision.reason))
            wrong += not right(comm, float(turn % 100))
    return {"vetoes": vetoes, "wrong": wrong, "ms": total_ms, "validation_ms": validation_ms}


def busy(context: Context, options: dict[str, Any]) -> None:
    """Say this process's id once all is well, then call without end, or "calls" times."""
    with communicator(context) as comm:
        assert all(right(comm, float(turn)) for turn in range(3))
        context.say({"pid": os.getpid(), "backend": comm.decision.backend})
        calls = options.get("calls")
        turn = 0
        while calls is None or turn < calls:
            assert right(comm, float(turn % 100))
            turn += 1


def late(context: Context, options: dict[str, Any]) -> dict[str, Any]:
    """The last rank comes to a call "seconds" late, with the usual deadlines."""
    device = "cpu" if context.gpu is None else f"cuda:{context.gpu}"
    with Communicator(device=device, config=Config(**_ANYWHERE)) as comm:
        assert all(right(comm, float(turn)) for turn in range(3))
        if context.rank == context.world - 1:
            time.sleep(options["seconds"])
        since = time.perf_counter()
        result = right(comm, 7.0)
        return {"right": result, "waited_s": round(time.perf_counter() - since, 2)}


def stall(context: Context, options: dict[str, Any]) -> dict[str, Any]:
    """The last rank stays away from a call: when that is in the others' log, by the usual notice,
    and when their exception comes, in seconds from the call."""
    device = "cpu" if context.gpu is None else f"cuda:{context.gpu}"
    config = Config(**_ANYWHERE, timeout_ms=options["timeout_ms"])
    with (
        Communicator(device=device, config=config) as comm,
        tempfile.TemporaryDirectory() as folder,
        stderr.captured(Path(folder) / "log") as log,
    ):
        assert all(right(comm, float(turn)) for turn in range(3))
        torch.distributed.barrier()
        if context.rank == context.world - 1:
            time.sleep(options["timeout_ms"] / 1e3 + 5)
            return {}
        since = time.perf_counter()
        seen: dict[str, Any] = {"line": "", "ended": ""}
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.005) and not seen["line"]:
                if line := re.search(r"pyallreduce: .* has waited .*", log()):
                    seen.update(line=line[0], noticed_s=round(time.perf_counter() - since, 3))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            right(comm, 7.0)
        except AllReduceAborted as error:
            seen.update(ended=str(error), ended_s=round(time.perf_counter() - since, 3))
        finally:
            ended.set()
        watcher.join()
        return seen


def dies_behind_a_stall(context: Context, _options: dict[str, Any]) -> None:
    """The last rank comes to no call, and is killed once the others have given up."""
    device = "cpu" if context.gpu is None else f"cuda:{context.gpu}"
    comm = Communicator(device=device, config=Config(**_ANYWHERE, timeout_ms=1_000))
    assert right(comm, 1.0)
    torch.distributed.barrier()
    if context.rank == context.world - 1:
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)
    told = []
    for act, seconds in ((lambda: right(comm, 2.0), 1.5), (comm.recover, 0.0)):
        try:
            act()
        except AllReduceAborted as error:
            told.append(str(error))
        time.sleep(seconds)
    context.say({"told": told})


def wrap(context: Context, options: dict[str, Any]) -> list[Any]:
    """Calls on both sides of the epochs' wrap: every block's epoch is set close to 2^32."""
    with communicator(context) as comm:
        native = comm._native
        assert native is not None
        own, _ = native._slabs._mine()
        blocks = next(o for name, o, _, _ in native.layout.regions() if name == "blocks")
        epoch = struct.pack("<IIII", 0xFFFFFFFF - options["before"], 0, 0, 0)
        torch.distributed.barrier()
        own.write(blocks, epoch * _C.MAX_BLOCKS)
        torch.distributed.barrier()
        calls = 2 * options["before"]
        return [right(comm, float(turn), 1 + 997 * (turn % 5)) for turn in range(calls)]
