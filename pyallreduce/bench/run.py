# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The sweep that each rank makes: every size, dtype, mode and backend, verified and then timed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from pyallreduce import Communicator
from pyallreduce.bench import backends, report, timing
from pyallreduce.bench.backends import Backend
from pyallreduce.bench.options import Mode, Options
from pyallreduce.check.cases import DTYPES, Case, Data
from pyallreduce.check.verify import judge
from pyallreduce.worker import Context

__all__ = ["run_rank"]

_SLICE = 1 << 24  # elements verified at a time: the float64 sums of a large message need memory


def run_rank(context: Context, options: dict[str, Any]) -> None:
    """Measure; rank 0 says {"start": ...}, {"section": ...} and {"row": ...} as it goes."""
    device = torch.device("cpu") if context.gpu is None else torch.device("cuda", context.gpu)
    with Communicator(device=device) as comm:
        Sweep(context, comm, Options.from_json(options)).run()


class Sweep:
    """One rank's part of the sweep. Every decision here depends on the options and on what the
    ranks agreed on, so that all make the same calls."""

    def __init__(self, context: Context, comm: Communicator, options: Options) -> None:
        self._context = context
        self._comm = comm
        self._options = options
        self._backends = backends.make(comm, options.backends)

    def run(self) -> None:
        decision = self._comm.decision
        self._say({"start": {"backend": decision.backend, "reason": str(decision.reason)}})
        for dtype in self._options.dtypes:
            data = Data(self._context.world, DTYPES[dtype], self._comm.device)
            for mode in self._options.modes:
                titles = [_title(backend) for backend in self._backends]
                self._say({"section": {"titles": titles, "dtype": dtype, "mode": mode}})
                for nbytes in self._options.sizes(DTYPES[dtype].itemsize):
                    cells = [self._cell(b, data, dtype, mode, nbytes) for b in self._backends]
                    self._say({"row": {"bytes": nbytes, "dtype": dtype, "cells": cells}})

    def _cell(
        self, backend: Backend, data: Data, dtype: str, mode: Mode, nbytes: int
    ) -> dict[str, Any] | None:
        if mode == "graph" and not backend.capturable:
            return None
        options, world = self._options, self._context.world
        elements = nbytes // DTYPES[dtype].itemsize
        wrong = self._wrong_before(backend, data, elements) if options.check else 0
        x = timing.zero_sum(self._context.rank, world, elements, DTYPES[dtype], self._comm.device)
        calls = options.calls_of(nbytes, mode, self._comm.device)
        timed = timing.time_calls(backend, x, mode, calls, options.warmup, options.samples)
        self._comm.check()
        if options.check:
            wrong = _everywhere(wrong + int(x.count_nonzero()))
        record = report.Record(
            backend=backend.name,
            algorithm=backend.algorithm,
            world=world,
            dtype=dtype,
            mode=mode,
            bytes=nbytes,
            us=round(timed.us, 3),
            us_p99=round(timed.us_p99, 3),
            verified=options.check and wrong == 0,
            algbw=round(report.algorithm_bandwidth(nbytes, timed.us), 3),
            busbw=round(report.bus_bandwidth(nbytes, timed.us, world), 3),
            wrong=wrong,
            carrier=backend.detail(nbytes),
            calls=calls,
            samples=options.samples,
        )
        return asdict(record)

    def _wrong_before(self, backend: Backend, data: Data, elements: int) -> int:
        """Wrong elements of one call on this rank, on data that rounds."""
        inputs = data.inputs(Case(elements, "in place", elements))
        x = inputs[self._context.rank].clone()
        backend.all_reduce(x)
        slices = range(0, elements, _SLICE)
        outcomes = [
            judge(
                x[at : at + _SLICE],
                [value[at : at + _SLICE] for value in inputs],
                exact_bits=backend.exact,
            )
            for at in slices
        ]
        return sum(outcome.wrong for outcome in outcomes)

    def _say(self, report_: dict[str, Any]) -> None:
        if self._context.rank == 0:
            self._context.say(report_)


def _everywhere(count: int) -> int:
    total = torch.tensor([count], dtype=torch.int64)
    dist.all_reduce(total)
    return int(total)


def _title(backend: Backend) -> str:
    return backend.name if backend.algorithm == "default" else f"{backend.name} {backend.algorithm}"
