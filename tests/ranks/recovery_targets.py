# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_communicator.py do where a new generation is to begin, and some rank is
late, closes or leaves."""

from __future__ import annotations

import threading
import time
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from communicator_targets import communicator, outcome, works

from pyallreduce import Config
from pyallreduce.worker import Context


def closed_behind_refusal(context: Context, options: dict[str, Any]) -> list[Any]:
    """Rank 1's bad call ends its program; the others hear of it, then make their next call."""
    with communicator(context) as comm:
        works(comm)
        x = torch.ones(64)
        kind, _ = outcome(lambda: comm.all_reduce(x, op="median" if context.rank == 1 else "sum"))
        if context.rank == 1:
            time.sleep(options["closes_after_s"])
            comm.close()
            return [kind]
        time.sleep(options["others_after_s"])
        since = time.monotonic()
        ends = [outcome(call) for call in (lambda: comm.all_reduce(x), comm.recover)]
        return [kind, ends, time.monotonic() - since]


def late_recovery(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Rank 1 comes to a recovery when the others have given it up; then all try again."""
    with communicator(context) as comm:
        works(comm)
        native = comm._native
        assert native is not None
        with mock.patch.object(native, "_config", Config(exchange_timeout_ms=300)):
            ends = [] if context.rank == 1 else [outcome(comm.recover)]
            dist.barrier()
            if context.rank == 1:
                ends = [outcome(comm.recover)]
            dist.barrier()
        comm.recover()
        return [*ends, works(comm)]


def ends_while_it_waits(context: Context, options: dict[str, Any]) -> list[Any]:
    """Rank 1 comes to a recovery, and closes or leaves there; the others come behind that."""
    comm = communicator(context)
    works(comm)
    dist.barrier()
    if context.rank == 1:
        told: list[list[str]] = []
        waiting = threading.Thread(target=lambda: told.append(outcome(comm.recover)))
        waiting.start()
        time.sleep(0.3)
        getattr(comm, options["how"])()
        dist.barrier()
        comm.close()
        waiting.join(20)
        return [told, 0.0]
    dist.barrier()
    since = time.monotonic()
    ends = [outcome(comm.recover) for _ in range(2)]
    return [ends, time.monotonic() - since]
