# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What each rank of `pyallreduce tune` runs. All ranks see the slowest rank's times, so that all
choose the same candidates for the second round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from pyallreduce import Communicator
from pyallreduce.bench import timing
from pyallreduce.bench.candidates import Race, candidates, measure
from pyallreduce.bench.options import Mode
from pyallreduce.bench.tune import Measured
from pyallreduce.check.cases import DTYPES
from pyallreduce.policy import ONE_SHOT, Plan
from pyallreduce.table import Carrier
from pyallreduce.worker import Context

__all__ = ["run_rank"]

_MIB = 1 << 20
_FINALISTS = 4


def run_rank(context: Context, options: dict[str, Any]) -> None:
    """Tune; rank 0 says {"start": ...}, {"size": ...} before and {"measured": [...]} after each
    size. No further size is begun after `options["seconds"]`."""
    device = torch.device("cpu") if context.gpu is None else torch.device("cuda", context.gpu)
    with Communicator(device=device) as comm:
        Tuning(context, comm, options).run()


class Tuning:
    """One rank's part."""

    def __init__(self, context: Context, comm: Communicator, options: Mapping[str, Any]) -> None:
        self._context = context
        self._comm = comm
        self._end = time.monotonic() + options["seconds"]
        race = Race(options["min_bytes"], options["max_bytes"], dtype=options["dtype"])
        self._sizes = race.sizes()
        self._brief = replace(race, samples=3, warmup=1)
        self._careful = replace(race, samples=15, warmup=2)

    def run(self) -> None:
        decision = self._comm.decision
        fallback = "gloo" if self._comm.device.type == "cpu" else "nccl"
        start = {
            "backend": decision.backend,
            "reason": str(decision.reason),
            "machine": asdict(self._comm.machine),
            "fallback": fallback,
        }
        self._say({"start": start})
        if decision.backend != "native":
            return
        for done, nbytes in enumerate(self._sizes):
            plans = candidates(nbytes, self._comm.limits)
            report = {"size": nbytes, "candidates": len(plans), "done": done}
            self._say({**report, "of": len(self._sizes)})
            measured = [asdict(m) for m in self._measure(nbytes, plans)]
            self._say({"bytes": nbytes, "measured": measured})
            if self._late():
                return

    def _measure(self, nbytes: int, plans: list[Plan]) -> list[Measured]:
        calls = 5 if nbytes > 4 * _MIB else 20
        brief = replace(self._brief, calls=calls)
        first = [(self._us(plan, nbytes, brief), plan) for plan in plans]
        first.sort(key=lambda timed: (timed[0], timed[1].blocks))
        careful = replace(self._careful, calls=2 * calls)
        final = [
            Measured(_carrier(plan), plan.blocks, plan.lanes, self._us(plan, nbytes, careful))
            for us, plan in first[:_FINALISTS]
            if us != float("inf")
        ]
        beside = Beside(self._context)
        if beside.serves(self._comm):
            final.append(Measured("nccl", 0, 0, beside.us(self._comm, nbytes, careful)))
        return final

    def _us(self, plan: Plan, nbytes: int, race: Race) -> float:
        """Infinite where a sum is wrong on any rank."""
        timed, right = measure(self._comm, self._context, plan, nbytes, race)
        return timed.us if not _anywhere(not right) else float("inf")

    def _late(self) -> bool:
        """All ranks stop behind the same size."""
        return _anywhere(time.monotonic() > self._end)

    def _say(self, said: dict[str, Any]) -> None:
        if self._context.rank == 0:
            self._context.say(said)


@dataclass(frozen=True)
class Beside:
    """The fallback, as a backend of `timing`."""

    context: Context
    name: str = "fallback"
    algorithm: str = "default"
    exact: bool = False
    capturable: bool = True

    def serves(self, comm: Communicator) -> bool:
        """Whether it is what a user would get instead: not gloo for ranks that share a GPU."""
        cuda = comm.device.type == "cuda"
        return not cuda or "cuda:nccl" in str(dist.get_backend_config())

    def us(self, comm: Communicator, nbytes: int, race: Race) -> float:
        dtype = DTYPES[race.dtype]
        elements = nbytes // dtype.itemsize
        rank, world = self.context.rank, self.context.world
        x = timing.zero_sum(rank, world, elements, dtype, comm.device)
        mode: Mode = "graph" if comm.device.type == "cuda" else "eager"
        calls = race.calls or 1
        return timing.time_calls(self, x, mode, calls, race.warmup, race.samples).us

    def all_reduce(self, x: torch.Tensor) -> None:
        dist.all_reduce(x)

    def detail(self, nbytes: int) -> str:
        del nbytes
        return self.name


def _carrier(plan: Plan) -> Carrier:
    return "one_shot" if plan.algorithm == ONE_SHOT else "two_shot"


def _anywhere(here: bool) -> bool:
    count = torch.tensor([int(here)])
    dist.all_reduce(count)
    return bool(int(count))
