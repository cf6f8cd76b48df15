# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What each rank of `pyallreduce check` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from pyallreduce import Communicator
from pyallreduce.check import graphs
from pyallreduce.check.cases import (
    DTYPES,
    SHAPES,
    Data,
    arrange,
    ladder,
    shapes_of,
    specials,
)
from pyallreduce.check.verify import Outcome, corrupted, judge
from pyallreduce.reasons import Code
from pyallreduce.worker import Context

__all__ = ["Row", "run_rank"]

Algorithm = Literal["auto", "one_shot", "two_shot"]
_FAULTS_KEPT = 3
_ODD_SIZES = (1, 37, 4099, 40_961)


@dataclass
class Row:
    """One line of the table, as one rank saw it."""

    algorithm: str
    dtype: str
    mode: str
    checksums: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, name: str, outcome: Outcome) -> None:
        if outcome.fault:
            self.wrong.append(len(self.checksums))
            if len(self.faults) < _FAULTS_KEPT:
                self.faults.append(f"{name}: {outcome.fault}")
        self.checksums.append(outcome.checksum)


Judged = Iterator[tuple[str, Outcome]]


@dataclass(frozen=True)
class Check:
    """The calls of one algorithm and dtype; each method yields (name, outcome) of one table row."""

    comm: Communicator
    algorithm: Algorithm
    dtype: torch.dtype
    data: Data
    quick: bool
    spoil: bool = False

    def plain(self) -> Judged:
        return self._ladder("plain", 0)

    def in_place(self) -> Judged:
        return self._ladder("in place", 10_000)

    def odd(self) -> Judged:
        for case in shapes_of(_ODD_SIZES, (*SHAPES, "out given"), 20_000):
            inputs = self.data.inputs(case)
            result, intact = arrange(case.shape, inputs[self.comm.rank], self._call)
            yield str(case), self._judge(result, inputs, intact)

    def special(self) -> Judged:
        for name, on_cpu in specials(self.comm.world_size, self.dtype):
            inputs = [x.to(self.comm.device) for x in on_cpu]
            result, intact = arrange("plain", inputs[self.comm.rank], self._call)
            yield name, self._judge(result, inputs, intact)

    def graph(self) -> Judged:
        rounds = 4 if self.quick else 20
        for name, result, inputs in graphs.replays(
            self._call, self.data, self.comm.rank, self._capacity(), self.dtype.itemsize, rounds
        ):
            yield name, self._judge(result, inputs, True)

    def rows(self) -> list[tuple[str, Callable[[], Judged]]]:
        rows = [("eager", self.plain)]
        if self.algorithm != "auto":
            rows += [("in place", self.in_place), ("odd tensors", self.odd)]
            rows += [("special values", self.special)]
        elif not self._native:
            rows += [("in place", self.in_place), ("odd tensors", self.odd)]
        if self.comm.device.type == "cuda" and self._native:
            rows.append(("graph", self.graph))
        return rows

    @property
    def _native(self) -> bool:
        return self.comm.decision.backend == "native"

    def _ladder(self, shape: Literal["plain", "in place"], turn: int) -> Judged:
        sizes = ladder(self.dtype.itemsize, self._capacity(), self.quick)
        for case in shapes_of(sizes, (shape,), turn):
            inputs = self.data.inputs(case)
            result, intact = arrange(case.shape, inputs[self.comm.rank], self._call)
            yield str(case), self._judge(result, inputs, intact)

    def _capacity(self) -> int:
        if not self._native:
            return 1 << 20
        return self.comm.capacity("two_shot" if self.algorithm == "auto" else self.algorithm)

    def _call(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        forced = None if self.algorithm == "auto" else self.algorithm
        result: torch.Tensor = self.comm.all_reduce(x, out=out, algorithm=forced)
        return result

    def _judge(self, result: torch.Tensor, inputs: list[torch.Tensor], intact: bool) -> Outcome:
        if self.spoil and result.numel():
            result = corrupted(result)
        outcome = judge(result, inputs, exact_bits=self._native)
        if not intact:
            fault = "the input was changed, or `out` was not used"
            return Outcome(outcome.checksum, result.numel(), fault)
        return outcome


def run_rank(context: Context, options: dict[str, Any]) -> dict[str, Any]:
    """Run everything; give {"decision", "rows", "edges" and "validation_ms" of the start-up}.

    Options: "quick" (fewer sizes), "dtypes" (names; none means all), "inject" (flip a bit of each
    result of the last rank's first algorithm and dtype: the check must then fail).
    """
    device = torch.device("cpu") if context.gpu is None else torch.device("cuda", context.gpu)
    with Communicator(device=device) as comm:
        native = comm.decision.backend == "native"
        algorithms: tuple[Algorithm, ...] = (
            ("one_shot", "two_shot", "auto") if native else ("auto",)
        )
        dtypes = {name: DTYPES[name] for name in options["dtypes"] or DTYPES}
        data = {name: Data(context.world, dtype, device) for name, dtype in dtypes.items()}
        checks = [
            (name, Check(comm, algorithm, dtype, data[name], bool(options["quick"])))
            for name, dtype in dtypes.items()
            for algorithm in algorithms
        ]
        if options.get("inject") and context.rank == context.world - 1:
            checks[0] = (checks[0][0], replace(checks[0][1], spoil=True))
        work = [(name, check, *row) for name, check in checks for row in check.rows()]
        rows: list[Row] = []
        for done, (name, check, mode, judged) in enumerate(work):
            row = Row(check.algorithm, name, mode)
            label = f"{row.algorithm} {name} {mode}"
            if context.rank == 0:
                context.say({"done": done, "of": len(work), "label": label})
            for case, outcome in judged():
                row.add(case, outcome)
            comm.check()
            rows.append(row)
        if context.rank == 0:
            context.say({"done": len(work), "of": len(work), "label": "done"})
        return {
            "decision": _decision(comm),
            "rows": [asdict(row) for row in rows],
            "edges": comm.edges(),
            "validation_ms": comm.validation_ms,
        }


def _decision(comm: Communicator) -> dict[str, Any]:
    decision = comm.decision
    reason = decision.reason
    told = f"OK: {reason.detail}." if reason.code is Code.OK else str(reason)
    return {
        "backend": decision.backend,
        "target": decision.target,
        "code": reason.code.value,
        "reason": told,
        "remedy": reason.remedy,
        "table": [str(line) for line in decision.table],
    }
