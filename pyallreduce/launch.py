# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Start N ranks as processes of this machine, hear their reports, leave none behind.

The ranks meet in a torch TCPStore on 127.0.0.1 whose port the kernel picks. Each one writes JSON
lines to a pipe of its own (`worker.py`); its standard output joins this process's standard error,
so that what a library prints never mixes with a report. Nothing is pickled and no file is named.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pyallreduce.errors import PyallreduceError

__all__ = ["HOST_RANKS", "LaunchError", "Placement", "launch", "place"]

DeviceChoice = Literal["auto", "cuda", "cpu"]
Report = Callable[[int, Any], None]

HOST_RANKS = 4
_MAX_RANKS = 8
# After the first failure: how long the other ranks may take to say what they saw of it.
_LAST_WORDS_S = 5.0
_REAP_S = 10.0
_READ_BYTES = 1 << 16
# The ranks import from the same places as this process: never from a source tree that happens to be
# the working directory.
_START = (
    "import json, sys; job = json.loads(sys.argv[1]); sys.path[:] = job['path']; "
    "from pyallreduce.worker import main; main(job)"
)


class LaunchError(PyallreduceError):
    """The ranks could not be started, or some of them failed; the message holds their own words."""


@dataclass(frozen=True)
class Placement:
    """Where the ranks run: `ranks` processes, rank i on GPU i % `gpus`, or on the CPU where `gpus`
    is 0."""

    ranks: int
    gpus: int

    @property
    def backend(self) -> str:
        """The process group's backend. Ranks that share a GPU can't use NCCL."""
        return "cpu:gloo,cuda:nccl" if self.ranks <= self.gpus else "gloo"

    def __str__(self) -> str:
        if not self.gpus:
            return f"{self.ranks} ranks on the CPU"
        used = min(self.ranks, self.gpus)
        shared = "" if self.ranks <= self.gpus else ", which they share"
        return f"{self.ranks} ranks on {used} GPU{'s' if used > 1 else ''}{shared}"


def place(ranks: int | None, device: DeviceChoice, *, gpus: int, share_gpu: bool) -> Placement:
    """Choose where the ranks run.

    Args:
        ranks: how many; None for one a GPU, or 4 on the CPU.
        device: "auto" takes the GPUs where there are enough of them for two ranks.
        gpus: CUDA devices that this process sees.
        share_gpu: several ranks may use one GPU.

    Raises:
        LaunchError: the machine does not have what is asked for; the message says what it has.
    """
    if ranks is not None and not 2 <= ranks <= _MAX_RANKS:
        raise LaunchError(f"{ranks} ranks: expected 2 to {_MAX_RANKS}")
    enough = gpus >= 2 or (gpus == 1 and share_gpu)
    if device == "cpu" or (device == "auto" and not enough):
        return Placement(ranks or HOST_RANKS, 0)
    if not enough:
        raise LaunchError(f"device cuda: expected 2 GPUs or more, this machine shows {gpus}")
    ranks = ranks or min(max(gpus, 2), _MAX_RANKS)
    if ranks > gpus and not share_gpu:
        message = (
            f"{ranks} ranks but {gpus} GPUs: use --ranks {gpus}, --device cpu, or "
            "PYALLREDUCE_SHARE_GPU=1 (several ranks on one GPU: slow, an aid for tests)"
        )
        raise LaunchError(message)
    return Placement(ranks, gpus)


def launch(
    target: str,
    options: Mapping[str, Any],
    placement: Placement,
    *,
    deadline_s: float,
    on_report: Report = lambda _rank, _report: None,
) -> list[Any]:
    """Run `target` ("package.module:function") as every rank and return what each one returned.

    The function is called as `function(context: worker.Context, options: dict)` with
    torch.distributed initialised; options, reports and results are what JSON can carry. Call it
    from a thread that outlives the ranks: the kernel ends them when the thread that started them
    ends.

    Args:
        deadline_s: from start to end, in seconds.
        on_report: called here with (rank, report) for each `context.say(report)` there.

    Raises:
        LaunchError: a rank raised, died, or did not end in time. No rank is left when this returns.
    """
    with contextlib.ExitStack() as stack:
        store, port = _rendezvous(deadline_s)
        stack.callback(lambda: store)  # the server lives until the ranks are gone
        ranks = [
            stack.enter_context(_started(rank, placement, target, options, port, deadline_s))
            for rank in range(placement.ranks)
        ]
        _listen(ranks, time.monotonic() + deadline_s, on_report)
        return [rank.result for rank in ranks]


@dataclass
class _Rank:
    """One child: its process, the read end of its pipe, and what it has said."""

    number: int
    process: subprocess.Popen[bytes]
    pipe: int
    pending: bytearray = field(default_factory=bytearray)
    has_result: bool = False
    result: Any = None
    failure: str = ""
    closed: bool = False

    def read(self) -> Iterator[Any]:
        """The reports that have arrived; the result and the end of the pipe are kept."""
        data = os.read(self.pipe, _READ_BYTES)
        if not data:
            self._close()
            return
        self.pending += data
        while (end := self.pending.find(b"\n")) >= 0:
            message = json.loads(self.pending[:end])
            del self.pending[: end + 1]
            if "failure" in message:
                self.failure = message["failure"]
            elif "result" in message:
                self.has_result, self.result = True, message["result"]
            else:
                yield message["report"]

    def _close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_REAP_S)
        code = self.process.poll()
        if code != 0 or not self.has_result:
            how = "does not end" if code is None else f"ended with exit code {code}"
            when = "after its result" if self.has_result else "without a result"
            self.failure = self.failure or f"{how} {when}"
        self.closed = True


def _rendezvous(deadline_s: float) -> tuple[object, int]:
    """The store that the ranks meet in, reachable from this machine alone, and its port."""
    import datetime

    import torch.distributed as dist

    listener = socket.create_server(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    c10d: Any = dist  # its stubs do not name TCPStore
    store = c10d.TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=deadline_s),
        master_listen_fd=listener.detach(),
    )
    return store, port


@contextlib.contextmanager
def _started(
    rank: int,
    placement: Placement,
    target: str,
    options: Mapping[str, Any],
    port: int,
    deadline_s: float,
) -> Iterator[_Rank]:
    """One running rank; on leaving it is ended if it has not ended itself."""
    reader, writer = os.pipe()
    job = {
        "path": sys.path,
        "parent": os.getpid(),
        "report_fd": writer,
        "port": port,
        "rank": rank,
        "world": placement.ranks,
        "gpu": rank % placement.gpus if placement.gpus else None,
        "backend": placement.backend,
        "deadline_s": deadline_s,
        "target": target,
        "options": dict(options),
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(job)],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=(writer,),
            env=_environment(),
        )
    except OSError as error:
        os.close(reader)
        raise LaunchError(f"rank {rank} could not be started: {error}") from error
    finally:
        os.close(writer)
    try:
        yield _Rank(rank, process, reader)
    finally:
        os.close(reader)
        if process.poll() is None:
            process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """Ours, less an outer launcher's marks, and with the traffic of the ranks kept on this
    machine."""
    marks = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    environ = {name: value for name, value in os.environ.items() if name not in marks}
    environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    environ.setdefault("OMP_NUM_THREADS", "1")
    return environ


def _hear(rank: _Rank, selector: selectors.BaseSelector, on_report: Report) -> None:
    for report in rank.read():
        on_report(rank.number, report)
    if rank.failure or rank.closed:
        selector.unregister(rank.pipe)


def _listen(ranks: list[_Rank], deadline: float, on_report: Report) -> None:
    """Hear all ranks until their pipes close; after a failure only for a few seconds more."""
    given = deadline - time.monotonic()
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank.pipe, selectors.EVENT_READ, rank)
        # Also where ranks report faster than they are heard.
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                _hear(key.data, selector, on_report)
                if key.data.failure:
                    deadline = min(deadline, time.monotonic() + _LAST_WORDS_S)
        for key, _ in selector.select(0):  # what has arrived by then, but one read a rank
            _hear(key.data, selector, on_report)
        late = [key.data for key in selector.get_map().values()]
    failed: dict[str, list[int]] = {}  # what all ranks say alike is told once
    for rank in [*(rank for rank in ranks if rank.failure), *late]:
        what = rank.failure or f"did not end in time ({given:.0f} s)"
        failed.setdefault(what, []).append(rank.number)
    if failed:
        told = (f"rank {', '.join(map(str, who))}: {what}" for what, who in failed.items())
        raise LaunchError("\n".join(told))
