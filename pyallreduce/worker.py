# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The inside of a rank that `launch` started: join the group, call the target, report as JSON
lines."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import datetime
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyallreduce.errors import BackendUnavailable, ConfigError

__all__ = ["Context", "main"]

_PR_SET_PDEATHSIG = 1
_LONGEST_WAIT_S = 300.0


@dataclass(frozen=True)
class Context:
    """What a target is given: its place in the group, and the way to its starter.

    `gpu` is the index of this rank's CUDA device, None on the CPU. `say` takes what JSON can carry.
    """

    rank: int
    world: int
    gpu: int | None
    say: Callable[[Any], None]


def main(job: dict[str, Any]) -> None:
    """Run one rank. The exit code is 0 only if the target returned and its result was sent."""
    _die_with(job["parent"])
    send = _sender(job["report_fd"])
    try:
        module, function = job["target"].split(":")
        target = getattr(importlib.import_module(module), function)
        with _group(job):
            context = Context(job["rank"], job["world"], job["gpu"], lambda r: send({"report": r}))
            result = target(context, job["options"])
        send({"result": result})
        if job["gpu"] is None:
            _leave()
    except BaseException as error:
        # The last place that can tell: whatever ends this rank becomes text for the starter.
        with contextlib.suppress(BrokenPipeError):
            send({"failure": _told(error)})
        sys.stderr.flush()
        # Not sys.exit: a communicator whose peers are gone must not be torn down collectively.
        os._exit(1)


def _told(error: BaseException) -> str:
    """A traceback, except for what the user can mend: there the message says it all."""
    if isinstance(error, BackendUnavailable | ConfigError):
        return f"{type(error).__name__}: {error}"
    return "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()


def _leave() -> None:
    """End without the interpreter's end: there, and seldom, a thread of gloo that drops the last
    tensor ends the process by SIGABRT. Ranks on GPUs end as programs do: compute-sanitizer asks."""
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(0)


def _die_with(parent: int) -> None:
    """Have the kernel end this process with its starter, and catch a starter that is gone
    already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def _sender(fd: int) -> Callable[[dict[str, Any]], None]:
    os.set_inheritable(fd, False)

    def send(message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            data = data[os.write(fd, data) :]

    return send


@contextlib.contextmanager
def _group(job: dict[str, Any]) -> Iterator[None]:
    """torch.distributed's default group over the starter's store, every wait bounded."""
    import torch
    import torch.distributed as dist

    wait = datetime.timedelta(seconds=min(job["deadline_s"], _LONGEST_WAIT_S))
    c10d: Any = dist  # its stubs do not name TCPStore
    store = c10d.TCPStore("127.0.0.1", job["port"], is_master=False, timeout=wait)
    if job["gpu"] is None:
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(job["gpu"])
    dist.init_process_group(
        job["backend"], store=store, rank=job["rank"], world_size=job["world"], timeout=wait
    )
    yield
    dist.destroy_process_group()
