# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`pyallreduce tune`: measure this machine and store the dispatch table that it asks for.

Two rounds a size: all candidates briefly, then the fastest few and the fallback with care. Of
launches that are equally fast the one with fewest blocks is taken: those SMs are left to others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pyallreduce import tuned
from pyallreduce.facts import Target
from pyallreduce.launch import Placement, launch
from pyallreduce.policy import Limits, table_for
from pyallreduce.table import MAX_BYTES, Carrier, Entry, Table, TableError

__all__ = ["Choice", "Measured", "choose", "run", "table_of"]

_TARGET = "pyallreduce.bench.tune_rank:run_rank"
# Closer than this is the same: what one run measures, the next one does not.
_SAME = 1.02
# NCCL gets a size only where it is clearly faster: it has no order of summation to keep.
_CLEARLY = 1.05
_LARGE = 16 << 20  # bytes: from here on, larger messages want the same launch


@dataclass(frozen=True)
class Measured:
    """One candidate of one size: µs of a call. For the fallback `algorithm` is "nccl"."""

    algorithm: Carrier
    blocks: int
    lanes: int
    us: float


@dataclass(frozen=True)
class Choice:
    """What carries one size, and what else it was compared with: µs of a call."""

    bytes: int
    best: Measured
    nccl_us: float


def choose(nbytes: int, measured: Sequence[Measured]) -> Choice:
    """The carrier of one size.

    Raises:
        TableError: no native candidate gave the right sums.
    """
    native = [m for m in measured if m.algorithm != "nccl"]
    others = [m for m in measured if m.algorithm == "nccl"]
    if not native:
        message = f"{nbytes} bytes: no launch gave the right sums; run `pyallreduce check`"
        raise TableError(message)
    fastest = min(m.us for m in native)
    best = min((m for m in native if m.us <= _SAME * fastest), key=lambda m: (m.blocks, m.us))
    nccl = min(others, key=lambda m: m.us, default=None)
    if nccl is not None and nccl.us * _CLEARLY < fastest:
        best = nccl
    return Choice(nbytes, best, nccl.us if nccl is not None else 0.0)


def table_of(choices: Sequence[Choice], shipped: Table) -> Table:
    """One entry for each run of sizes that have the same carrier; the last one has no end.

    Where nothing large was measured, larger messages go by the `shipped` table.
    """
    entries: list[Entry] = []
    for choice in sorted(choices, key=lambda c: c.bytes):
        best = choice.best
        entry = Entry(choice.bytes, best.algorithm, best.blocks, best.lanes)
        if entries and replace(entries[-1], up_to=entry.up_to) == entry:
            entries.pop()
        entries.append(entry)
    last = entries[-1]
    if last.up_to < _LARGE:
        entries += [entry for entry in shipped.entries if entry.up_to > last.up_to]
    else:
        entries[-1] = replace(last, up_to=MAX_BYTES)
    return Table(tuple(entries), "tuned")


def run(
    placement: Placement, path: Path, options: Mapping[str, Any], *, timeout_s: float
) -> Table | None:
    """Measure, print and store; None where there is no native path to tune.

    Raises:
        LaunchError: a rank failed. TableError: some sums were wrong.
    """
    heard = _Heard()
    start = time.monotonic()
    click.echo(f"pyallreduce tune: {placement}")
    with _progress() as show:

        def hear(_rank: int, said: dict[str, Any]) -> None:
            heard(said)
            show(said)

        launch(_TARGET, options, placement, deadline_s=timeout_s, on_report=hear)
    if heard.machine is None or not heard.choices:
        click.echo(f"nothing to tune: {heard.reason}")
        return None
    target: Target = "cuda" if placement.gpus else "host"
    table = table_of(heard.choices, table_for(Limits(placement.ranks, target, 0)))
    for choice in heard.choices:
        click.echo(_line(choice, heard.fallback))
    tuned.save(heard.machine, table, path)
    took = time.monotonic() - start
    if len(heard.choices) < heard.sizes:
        click.echo(f"{len(heard.choices)} of {heard.sizes} sizes measured: --seconds were over")
    click.echo(f"{len(table.entries)} entries for {heard.machine}, measured in {took:.0f} s")
    click.echo(f"stored in {path}")
    return table


class _Heard:
    """What rank 0 has said."""

    def __init__(self) -> None:
        self.machine: tuned.Machine | None = None
        self.reason = ""
        self.fallback = "nccl"
        self.choices: list[Choice] = []
        self.sizes = 0  # that were to be measured

    def __call__(self, said: dict[str, Any]) -> None:
        if "start" in said:
            self.reason = said["start"]["reason"]
            self.fallback = said["start"]["fallback"]
            if said["start"]["backend"] == "native":
                self.machine = tuned.Machine(**said["start"]["machine"])
        elif "size" in said:
            self.sizes = said["of"]
        elif "measured" in said:
            measured = [Measured(**m) for m in said["measured"]]
            self.choices.append(choose(said["bytes"], measured))


def _line(choice: Choice, fallback: str) -> str:
    best = choice.best
    shape = f"{best.blocks} x {best.lanes}" if best.blocks else ""
    name = fallback if best.algorithm == "nccl" else best.algorithm
    beside = f"{fallback} {choice.nccl_us:.2f} us" if choice.nccl_us else ""
    return f"{choice.bytes:12d}  {name:>9} {shape:>10} {best.us:9.2f} us   {beside}".rstrip()


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on a terminal, else one line a size."""
    console = Console()
    if not console.is_terminal:
        yield _plain
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting the ranks", total=None)

        def show(said: dict[str, Any]) -> None:
            if "size" in said:
                text = f"{said['size']} bytes, {said['candidates']} candidates"
                bar.update(task, total=said["of"], completed=said["done"], description=text)

        yield show


def _plain(said: dict[str, Any]) -> None:
    if "size" in said:
        done = f"{said['done'] + 1}/{said['of']}"
        click.echo(f"{done} {said['size']} bytes: {said['candidates']} candidates")
