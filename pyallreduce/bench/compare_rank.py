# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The inside of `bench --compare`: one backend's rows, each cell verified before it is timed.

Rank 0 says {"begin": [algorithm, dtype, mode, bytes]} before each cell and {"cell": {...}} behind
it, {"done": algorithm} behind its last, so that the starter knows what was being done when nothing
more comes.
"""

from __future__ import annotations

import gc
import importlib
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from pyallreduce.bench import modes
from pyallreduce.bench.compare_job import Job
from pyallreduce.bench.floor import floor_us
from pyallreduce.bench.options import Mode
from pyallreduce.bench.peers.base import Peer, Place
from pyallreduce.bench.report import Record, algorithm_bandwidth, bus_bandwidth
from pyallreduce.check.cases import DTYPES, Case, Data
from pyallreduce.check.verify import judge
from pyallreduce.worker import Context

__all__ = ["attempt", "build", "run_rank"]

_SLICE = 1 << 24  # elements verified at a time: the float64 sums of a large message need memory


def run_rank(context: Context, options: dict[str, Any]) -> None:
    """Measure the job's algorithms, one after the other."""
    job = Job.from_json(options)
    for algorithm in job.algorithms:
        Rows(context, job, algorithm).run()


def _place(job: Job, context: Context) -> Place:
    device = torch.device("cpu") if context.gpu is None else torch.device("cuda", context.gpu)
    cells = {
        (nbytes, modes.buffers_of(nbytes, mode, job.calls_of(nbytes, mode, device)))
        for mode in job.modes
        for nbytes in job.sizes
    }
    return Place(context.rank, context.world, device, tuple(sorted(cells)))


def attempt(context: Context, job: Job) -> str:
    """The same among ranks that go on whatever comes; the error of the first rank that failed.

    Every rank must call it. Where only some of them fail, the others may wait for ever.
    """

    def compile_first() -> None:
        module = importlib.import_module(job.module)
        if context.rank == 0 and hasattr(module, "build"):  # the others find what it made
            module.build(context.world, [DTYPES[name] for name in job.dtypes])

    return _anywhere(compile_first, context) or _anywhere(
        lambda: run_rank(context, asdict(job)), context
    )


def _anywhere(action: Callable[[], None], context: Context) -> str:
    """The first rank's error in `action`, on all ranks; empty where all went well."""
    error = ""
    try:
        action()
    except Exception as raised:
        error = "".join(traceback.format_exception(raised))
    everybody: list[Any] = [None] * context.world
    dist.all_gather_object(everybody, error)
    failed = [(rank, text) for rank, text in enumerate(everybody) if text]
    return f"rank {failed[0][0]}: {failed[0][1]}" if failed else ""


def build(_context: Context, options: dict[str, Any]) -> None:
    """Have a backend compile what it compiles at first use; one process is enough."""
    job = Job.from_json(options["job"])
    module = importlib.import_module(job.module)
    module.build(options["world"], [DTYPES[name] for name in job.dtypes])


class Rows:
    """One rank's part in measuring one algorithm."""

    def __init__(self, context: Context, job: Job, algorithm: str) -> None:
        self._context = context
        self._job = job
        self._algorithm = algorithm
        self._wrong: dict[tuple[str, bool, int], int] = {}

    def run(self) -> None:
        """Every cell that the backend can run."""
        place = _place(self._job, self._context)
        self._say({"begin": [self._algorithm, "", "start-up", 0]})
        peer: Peer = importlib.import_module(self._job.module).make(self._algorithm, place)
        data: dict[str, Data] = {}
        for dtype, mode, nbytes in self._job.cells():
            if not peer.serves(nbytes, DTYPES[dtype], mode):
                continue
            if dtype not in data:
                data = {dtype: Data(self._context.world, DTYPES[dtype], place.device)}
            self._say({"begin": [self._algorithm, dtype, mode, nbytes]})
            self._say({"cell": asdict(self._cell(peer, data[dtype], dtype, mode, nbytes))})
        self._say({"done": self._algorithm})
        gc.collect()  # NCCL waits for the graphs that hold its kernels
        peer.close()

    def _cell(self, peer: Peer, data: Data, dtype: str, mode: Mode, nbytes: int) -> Record:
        job, world = self._job, self._context.world
        before = self._verified(peer, data, dtype, mode, nbytes)
        calls = job.calls_of(nbytes, mode, peer.place.device)
        budget = modes.Budget(job.samples, job.warmup, job.seconds)
        found = modes.measure(peer, mode, nbytes, DTYPES[dtype], calls, budget)
        peer.check()
        wrong = before + _everywhere(found.wrong)
        return Record(
            backend=job.backend,
            algorithm=self._algorithm,
            world=world,
            dtype=dtype,
            mode=mode,
            bytes=nbytes,
            us=round(found.us, 3),
            us_p99=round(found.us_p99, 3),
            verified=wrong == 0,
            algbw=round(algorithm_bandwidth(nbytes, found.us), 3),
            busbw=round(bus_bandwidth(nbytes, found.us, world), 3),
            wrong=wrong,
            carrier=peer.detail(nbytes),
            calls=calls,
            samples=found.samples,
            floor=round(floor_us(nbytes, world), 3) if peer.place.device.type == "cuda" else None,
            blocks=peer.blocks(nbytes),
            host_us=None if found.host_us is None else round(found.host_us, 3),
            chain_us=None if found.chain_us is None else round(found.chain_us, 3),
        )

    def _verified(self, peer: Peer, data: Data, dtype: str, mode: Mode, nbytes: int) -> int:
        """Wrong elements on all ranks of one call on data that rounds, captured or eager as the
        mode is."""
        captured = mode != "eager"
        key = (dtype, captured, nbytes)
        if key not in self._wrong:
            elements = nbytes // DTYPES[dtype].itemsize
            inputs = data.inputs(Case(elements, "in place", elements))
            self._wrong[key] = _everywhere(_wrong(peer, inputs, captured))
        return self._wrong[key]

    def _say(self, said: dict[str, Any]) -> None:
        if self._context.rank == 0:
            self._context.say(said)


def _wrong(peer: Peer, inputs: list[torch.Tensor], captured: bool) -> int:
    mine = inputs[peer.place.rank]
    x = peer.buffers(1, mine.numel(), mine.dtype)[0]
    x.copy_(mine)
    if captured:
        if peer.serves(mine.nbytes, mine.dtype, "eager"):
            peer.all_reduce(x)  # loads code, which a capture may not
        graph, results = modes.run_captured(peer, lambda: [peer.all_reduce(x)])
        x.copy_(mine)
        graph.replay()
        result = results[0]
    else:
        result = peer.all_reduce(x)
    return sum(
        judge(
            result[at : at + _SLICE],
            [value[at : at + _SLICE] for value in inputs],
            exact_bits=peer.exact,
        ).wrong
        for at in range(0, mine.numel(), _SLICE)
    )


def _everywhere(count: int) -> int:
    total = torch.tensor([count], dtype=torch.int64)
    dist.all_reduce(total)
    return int(total)
