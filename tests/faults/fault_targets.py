# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What each rank of the fault matrix runs: a case is one communicator, CALLS calls, and a fault."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import links
import stderr
import torch
import torch.distributed as dist
from cases import CALLS, INSIDE_S, NOTICE_MS, STARTUP

from pyallreduce import Communicator, Config, slab, topology, tuned
from pyallreduce.errors import PyallreduceError
from pyallreduce.exchange import Exchange
from pyallreduce.native import NativePath
from pyallreduce.worker import Context

_SHORT, _LONG = 700, 20_000  # one block or two, or several; half of the victims meet each


class Planted(RuntimeError):  # noqa: N818 - an exception of the program, not of the library
    """What a case's victim raises."""


def run(context: Context, options: dict[str, Any]) -> None:
    """Every case in turn; each rank says {"case": name, "outcome": {...}} at its end, and, unless
    the case ends the group, {"case": name, "usable": {...}}: whether the process still is.

    Ranks that are about to be late show on standard error where they are; those of a lethal case
    every "late_s" seconds, since none knows when its launcher will end it.
    """
    lethal = any(case["lethal"] for case in options["cases"])
    own_stderr = os.fdopen(os.dup(2), "w")
    faulthandler.dump_traceback_later(options["late_s"], repeat=lethal, file=own_stderr)
    if not lethal:
        _usable(context)  # its first all-reduce makes what the others find
    for case in options["cases"]:
        with stderr.captured(Path(options["folder"]) / f"rank {context.rank}") as log:
            outcome = _Case(context, case).run()
            outcome["log"] = log()
        context.say({"case": case["name"], "outcome": outcome})
        if not case["lethal"]:
            dist.barrier()
            context.say({"case": case["name"], "usable": _usable(context)})


def _usable(context: Context) -> dict[str, Any]:
    """A product and an all-reduce of torch's own group, on this rank's device: right, and when."""
    device = torch.device("cpu" if context.gpu is None else f"cuda:{context.gpu}")
    since = time.monotonic()
    one = torch.eye(256, device=device)
    ones = torch.ones(1000, device=device)
    dist.all_reduce(ones)
    right = torch.equal(one @ one, one) and bool((ones == context.world).all())
    return {"usable": right, "usable_s": round(time.monotonic() - since, 3)}


class _Case:
    def __init__(self, context: Context, case: dict[str, Any]) -> None:
        self.context = context
        self.case = case
        self.fault, self.stage = case["fault"], case["stage"]
        self.is_victim = context.rank == case["victim"]
        self.device = torch.device("cpu" if context.gpu is None else f"cuda:{context.gpu}")
        self.links: list[links.Link] = []
        self._second: threading.Thread | None = None
        self.outcome: dict[str, Any] = {
            **{"end": "right", "text": "", "wrong": 0, "peer": -1, "backend": "", "code": ""},
            **{"took": 0.0},
        }

    def run(self) -> dict[str, Any]:
        try:
            with contextlib.ExitStack() as stack:
                self._prepare(stack)
                comm = stack.enter_context(self._communicator())
                stack.callback(self._join)  # before the memory that it uses is let go
                self.outcome["backend"] = comm.decision.backend
                self.outcome["code"] = comm.decision.reason.code.value
                for number in range(CALLS):
                    with self._timed():
                        self._step(comm, number)
                if self.fault in ("torn", "delayed"):
                    dist.barrier()  # these links are not done when the kernel is
                if self.stage == "teardown":
                    self._await_all()
                    if self.is_victim:
                        self._strike()
                        comm.close()
        except (PyallreduceError, Planted) as error:
            self.outcome["end"], self.outcome["text"] = type(error).__name__, str(error)
            self.outcome["peer"] = getattr(error, "peer", -1)
        return self.outcome

    def _await_all(self) -> None:
        """The victim goes on when everybody has finished the last call; a barrier would bind the
        others to its death."""
        victim, token = self.case["victim"], torch.zeros(1)
        if not self.is_victim:
            dist.send(token, victim)
            return
        for rank in range(self.context.world):
            if rank != victim:
                dist.recv(token, rank)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """How long the last call took, also one that failed; what follows it is not its time."""
        since = time.monotonic()
        try:
            yield
        finally:
            self.outcome["took"] = round(time.monotonic() - since, 3)

    def _communicator(self) -> Communicator:
        deadline = self.case["deadline_ms"]
        config = Config(
            slab_bytes=1 << 20,
            timeout_ms=deadline,
            notice_ms=NOTICE_MS,
            exchange_timeout_ms=2 * deadline,
            share_gpu=True,  # the drill may be asked for more ranks than there are GPUs
        )
        return Communicator(device=self.device, config=config)

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        """Set the trap in the victim's start-up, or its edges."""
        if not self.is_victim:
            return
        if self.stage in STARTUP:
            stack.enter_context(self._startup_trap())
        if self.fault in ("dropped", "mirrored", "corrupted", "torn", "delayed"):
            mode = self.fault if self.stage == "startup" else "sound"
            peers = [rank for rank in range(self.context.world) if rank != self.context.rank]
            self.links, undo = links.install(peers[:1], mode)
            stack.callback(undo)

    def _startup_trap(self) -> Any:
        """Raise in the work of a stage, or strike in front of its exchange."""
        if self.fault == "exception":
            owner, name = {
                "facts": (topology, "_boot_id"),
                "tables": (tuned, "load"),
                "offers": (slab.Slabs, "allocate"),
                "open": (slab.Slabs, "open"),
                "edges": (NativePath, "ping_pong"),
                "calls": (NativePath, "all_reduce"),
            }[self.stage]
            return mock.patch.object(owner, name, side_effect=Planted("planted"))
        gather, turn = Exchange.gather, STARTUP.index(self.stage)
        seen = iter(range(1 << 10))

        def trapped(exchange: Exchange, frame: bytes, step: str) -> list[bytes]:
            if next(seen) == turn:
                self._strike()
            return gather(exchange, frame, step)

        return mock.patch.object(Exchange, "gather", trapped)

    def _step(self, comm: Communicator, number: int) -> None:
        """One call, its result held against what must come of it."""
        arguments: dict[str, Any] = {"tag": number, "algorithm": "one_shot"}
        if comm.decision.backend != "native":
            arguments = {}
        x = torch.full((self._elements(),), float(self.context.rank + number), device=self.device)
        struck = number == self.case["strikes"]
        if (
            struck
            and not self.is_victim
            and (self.stage == "inside" or self.fault == "two at once")
        ):
            time.sleep(2 * INSIDE_S)  # the victim waits in its call meanwhile
        if struck and self.is_victim:
            if self.fault == "skip":
                return
            x = self._disturb(comm, x, arguments)
        for link in self.links:
            if struck:
                link.mode = self.fault
        y = self._call(comm, x, arguments)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        comm.check()
        world = self.context.world
        total = world * number + world * (world - 1) / 2
        self.outcome["wrong"] += int((y != total).sum())

    def _elements(self) -> int:
        return _SHORT if (self.case["victim"] + self.context.world) % 2 == 0 else _LONG

    def _call(self, comm: Communicator, x: torch.Tensor, how: dict[str, Any]) -> torch.Tensor:
        """Eager, or by the replay of a graph, which the host does not see."""
        if self.stage != "replay" or self.device.type == "cpu":
            return comm.all_reduce(x, **how)
        self._graph = torch.cuda.CUDAGraph()  # lives until it has run
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            y = comm.all_reduce(x, **how)
        self._graph.replay()
        return y

    def _disturb(self, comm: Communicator, x: torch.Tensor, how: dict[str, Any]) -> torch.Tensor:
        """The victim's part in a fault of a call: another call, or a blow."""
        if self.fault == "size":
            return torch.cat([x, x[:1]])
        if self.fault == "dtype":
            return x.half()
        if self.fault == "algorithm":
            how["algorithm"] = "two_shot"
        elif self.fault == "tag":
            how["tag"] = 99
        elif self.fault == "two at once":
            self._second_caller(comm, x.clone(), how["tag"])
        elif self.stage == "inside":
            threading.Timer(INSIDE_S, self._strike).start()
        else:
            self._strike()
        return x

    def _second_caller(self, comm: Communicator, x: torch.Tensor, tag: int) -> None:
        """Another thread (on a GPU: another stream, unordered) makes the same call and waits."""
        native = comm._native
        assert native is not None
        plan = native.plan(x.numel() * 4, "one_shot")

        def call() -> None:
            with contextlib.suppress(PyallreduceError):
                launch = native._launch(x, plan)
                launch(x.data_ptr(), x.data_ptr(), tag, self._another_stream())

        self._second = threading.Thread(target=call)
        self._second.start()
        time.sleep(INSIDE_S)  # it is in its call by now

    def _join(self) -> None:
        if self._second is not None:
            self._second.join()

    def _another_stream(self) -> int:
        if self.device.type == "cpu":
            return 0
        self._stream = torch.cuda.Stream(self.device)
        return int(self._stream.cuda_stream)

    def _strike(self) -> None:
        if self.fault == "exception":
            raise Planted("planted")
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault.startswith("stop"):
            self.context.say({"stopped": os.getpid(), "for_ever": self.fault == "stop"})
            os.kill(os.getpid(), signal.SIGSTOP)
