# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""A graph whose peer does not come, and the same process afterwards."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from pyallreduce import Communicator, Config, validate
from pyallreduce.errors import PyallreduceError
from pyallreduce.reasons import Code, Reason
from pyallreduce.worker import Context

_CALLS, _REPLAYS = 20, 50


def stopped_graph(context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    """Rank 1 leaves out a replay: rank 0's ends at the deadline, and all that is queued drains."""
    device = torch.device("cuda", context.gpu)
    config = Config(slab_bytes=1 << 20, timeout_ms=1000)
    with Communicator(device=device, config=config) as comm:
        x = torch.ones(4000, device=device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(_CALLS):
                y = comm.all_reduce(x)
        _settle(comm)
        graph.replay()
        torch.cuda.synchronize()
        comm.check()
        seen: dict[str, Any] = {"end": "none"}
        if context.rank == 0:
            graph.replay()
            torch.cuda.synchronize()  # the deadline is over
        dist.barrier()
        since = time.perf_counter()
        for _ in range(_REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
        seen["drained_s"] = time.perf_counter() - since
        seen["poisoned"] = bool(y.isnan().all())
        try:
            comm.check()
        except PyallreduceError as error:
            seen["end"] = type(error).__name__
        since = time.perf_counter()
        a = torch.eye(256, device=device)
        seen["matmul"] = bool(torch.equal(a @ a, a))
        ones = torch.ones(1000, device=device)
        dist.all_reduce(ones)
        seen["nccl"] = bool((ones == 2).all())
        seen["usable_s"] = time.perf_counter() - since
        comm.recover()
        graph.replay()
        torch.cuda.synchronize()
        comm.check()
        seen["recovered"] = bool((y == 2).all())
        unfit = Reason(Code.KERNEL_MISMATCH, "made up") if context.rank == 1 else Reason(Code.OK)
        with mock.patch.object(validate, "first_calls", return_value=unfit):
            comm.recover()
        seen["vetoed"] = comm.decision.backend
        graph.replay()  # into slabs that nobody else uses any more
        torch.cuda.synchronize()
        seen["drained when vetoed"] = bool(y.isnan().all())
        seen["by nccl"] = bool((comm.all_reduce(ones) == 4).all())
        return seen


def _settle(comm: Communicator) -> None:
    """Past the patience of start-up and capture: the second eager call finds the first ended."""
    for _ in range(3):
        comm.all_reduce(torch.ones(10, device=comm.device))
        torch.cuda.synchronize()
