# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`bench --compare` as its starter sees it: one backend after the other, each in rank processes of
its own with a deadline, all in one run.

A backend that fails costs the row it was at: what it had measured is kept, its error is kept and
printed in one line, and its other rows are measured by a new set of processes. Under torchrun the
ranks are there already: the backends then share these processes, and one that hangs ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from pyallreduce.bench.compare_job import Job
from pyallreduce.bench.options import DTYPE_NAMES, Mode
from pyallreduce.bench.peers.registry import Entry, why_missing
from pyallreduce.bench.report import Record
from pyallreduce.launch import LaunchError, Placement, launch
from pyallreduce.worker import Context

__all__ = ["Comparison", "Failure", "Plan", "telling_line"]

_RANK = "pyallreduce.bench.compare_rank:run_rank"
_BUILD = "pyallreduce.bench.compare_rank:build"
_BUILD_DEADLINE_S = 300.0
_LEAST_S = 10.0
_KEPT = 4000  # characters of an error
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What is compared.

    `deadline_s` holds for each set of rank processes, `timeout_s` for everything.
    """

    dtypes: tuple[str, ...]
    modes: tuple[Mode, ...]
    sizes: tuple[int, ...]
    samples: int
    warmup: int
    seconds: float
    deadline_s: float
    timeout_s: float
    calls: int | None = None

    def job(self, entry: Entry, algorithms: Sequence[str]) -> Job:
        return Job(
            backend=entry.name,
            module=entry.module,
            algorithms=tuple(algorithms),
            dtypes=tuple(DTYPE_NAMES[name] for name in self.dtypes),
            modes=self.modes,
            sizes=self.sizes,
            samples=self.samples,
            warmup=self.warmup,
            seconds=self.seconds,
            calls=self.calls,
        )

    @property
    def cells(self) -> int:
        return len(self.dtypes) * len(self.modes) * len(self.sizes)


@dataclass(frozen=True)
class Failure:
    """A row that is missing, in part or whole; `where` is the cell that it was at."""

    backend: str
    algorithm: str
    where: str
    error: str

    def __str__(self) -> str:
        at = f" at {self.where}" if self.where else ""
        return f"{self.backend} {self.algorithm}{at}: {telling_line(self.error)}"


class Comparison:
    """Measures backends and keeps what they say.

    Args:
        tell: is told {"cell": record} and {"failure": text} as they come, {"begin": [...]} before a
            cell, {"stage": text} between backends.
    """

    def __init__(self, plan: Plan, placement: Placement, tell: Tell) -> None:
        self.records: list[Record] = []
        self.failures: list[Failure] = []
        self._plan = plan
        self._placement = placement
        self._tell = tell
        self._end = time.monotonic() + plan.timeout_s

    def run(self, entries: Sequence[Entry], after_each: Callable[[], None]) -> None:
        """Measure all; `after_each` is called behind each backend, to keep what there is."""
        ready = self.build(entries)
        for entry in ready:
            self._measure(entry)
            after_each()

    def run_inside(
        self, context: Context, entries: Sequence[Entry], after_each: Callable[[], None]
    ) -> None:
        """The same in ranks that torchrun has started; every rank calls it."""
        from pyallreduce.bench.compare_rank import attempt

        for entry in self._present(entries):
            watch = _Watch(lambda said, entry=entry: self.hear(entry, said))  # type: ignore[misc]
            heard = replace(context, say=watch)
            for algorithm in entry.algorithms:
                if error := attempt(heard, self._plan.job(entry, (algorithm,))):
                    where = watch.where if watch.algorithm == algorithm else ""
                    self.fail(Failure(entry.name, algorithm, where, error[-_KEPT:]))
            after_each()

    def hear(self, entry: Entry, said: dict[str, Any]) -> None:
        """One report of rank 0 of `entry`."""
        if "cell" in said:
            self.records.append(Record(**said["cell"]))
        if "begin" in said:
            said = {"begin": [entry.name, *said["begin"]]}
        self._tell(said)

    def fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        self._tell({"failure": str(failure)})

    def _present(self, entries: Sequence[Entry]) -> list[Entry]:
        present = []
        for entry in entries:
            if why := why_missing(entry, self._placement.ranks):
                self._fail_all(entry, entry.algorithms, why)
            else:
                present.append(entry)
        return present

    def build(self, entries: Sequence[Entry]) -> list[Entry]:
        """Compile at once what is compiled at first use, before anything is timed; who is ready."""
        present = self._present(entries)
        compiled = [entry for entry in present if entry.jit]
        if not compiled:
            return present
        self._tell({"stage": f"compiling {', '.join(entry.name for entry in compiled)}"})
        with ThreadPoolExecutor(len(compiled)) as pool:
            errors = dict(zip(compiled, pool.map(self._build_one, compiled), strict=True))
        for entry, error in errors.items():
            if error:
                self._fail_all(entry, entry.algorithms, error)
        return [entry for entry in present if not errors.get(entry)]

    def _build_one(self, entry: Entry) -> str:
        job = asdict(self._plan.job(entry, entry.algorithms))
        options = {"job": job, "world": self._placement.ranks}
        one = replace(self._placement, ranks=1)
        deadline = min(_BUILD_DEADLINE_S, max(self._left(), _LEAST_S))
        try:
            launch(_BUILD, options, one, deadline_s=deadline)
        except LaunchError as error:
            return f"compiling: {error}"
        return ""

    def _measure(self, entry: Entry) -> None:
        """The backend's rows; after a failure the rows behind it, in new processes."""
        pending = list(entry.algorithms)
        while pending:
            if self._left() < _LEAST_S:
                self._fail_all(entry, pending, "no time was left for it")
                return
            self._tell({"stage": f"{entry.name}: starting {self._placement}"})
            watch = _Watch(lambda said: self.hear(entry, said))
            try:
                launch(
                    _RANK,
                    asdict(self._plan.job(entry, pending)),
                    self._placement,
                    deadline_s=min(self._plan.deadline_s, self._left()),
                    on_report=lambda _rank, said, watch=watch: watch(said),  # type: ignore[misc]
                )
                return
            except LaunchError as error:
                pending = self._blame(entry, pending, watch, str(error))

    def _blame(self, entry: Entry, pending: list[str], watch: _Watch, error: str) -> list[str]:
        """Record whose row is lost; give the algorithms that are still to be measured."""
        left = [algorithm for algorithm in pending if algorithm not in watch.done]
        if not left:  # it fell over on its way out, with all measured
            self._tell({"stage": f"{entry.name} ended badly: {telling_line(error)}"})
            return []
        culprit = watch.algorithm if watch.algorithm in left else left[0]
        self.fail(Failure(entry.name, culprit, watch.where, error[-_KEPT:]))
        return [algorithm for algorithm in left if algorithm != culprit]

    def _fail_all(self, entry: Entry, algorithms: Sequence[str], why: str) -> None:
        for algorithm in algorithms:
            self.fail(Failure(entry.name, algorithm, "", why[-_KEPT:]))

    def _left(self) -> float:
        return self._end - time.monotonic()


class _Watch:
    """Remembers what a backend is doing, for when nothing more comes."""

    def __init__(self, pass_on: Tell) -> None:
        self.algorithm = ""
        self.where = ""
        self.done: set[str] = set()
        self._pass_on = pass_on

    def __call__(self, said: dict[str, Any]) -> None:
        if "begin" in said:
            self.algorithm, dtype, mode, nbytes = said["begin"]
            self.where = f"{mode}, {dtype}, {nbytes} bytes" if nbytes else mode
        if "done" in said:
            self.done.add(said["done"])
        self._pass_on(said)


def telling_line(error: str) -> str:
    """Of an error's text the line that says most: where an exception was raised, its message."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    if not lines:
        return "failed"
    raised = [line for line in lines if _is_exception(line)]
    return (raised or lines)[0][:300]


def _is_exception(line: str) -> bool:
    name = line.split(":", 1)[0]
    return (
        ":" in line
        and " " not in name
        and name.rsplit(".", 1)[-1].endswith(
            ("Error", "Exception", "Aborted", "Unavailable", "Timeout", "Interrupt")
        )
    )
