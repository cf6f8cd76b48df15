# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`pyallreduce bench --compare`: progress while it runs, tables and JSON at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pyallreduce import _native
from pyallreduce.bench import command
from pyallreduce.bench.compare import Comparison, Plan, Tell
from pyallreduce.bench.compare_report import summary, tables, write_json
from pyallreduce.bench.peers.registry import Entry
from pyallreduce.config import Config
from pyallreduce.info import header
from pyallreduce.launch import Placement

__all__ = ["run"]

_PEERS = ("flashinfer-python", "sglang", "vllm", "nvidia-nccl-cu13", "nvidia-nccl-cu12")


def run(
    plan: Plan,
    entries: Sequence[Entry],
    placement: Placement,
    *,
    output: Path | None,
    command_line: str,
    commit: str | None,
) -> bool:
    """Compare, print, write `output`; whether ours was measured and every result was right."""
    command.without_graph_mixing()
    head = header(command_line)
    head["versions"].update(_versions())
    head["ranks"] = str(placement)
    head["environment"] = command.environment()
    if memory := _slab_bytes(placement.ranks):
        head["slab_bytes"] = memory
    if commit:
        head["commit"] = commit
    cells = plan.cells * sum(len(entry.algorithms) for entry in entries)
    if command.under_torchrun():
        context = command.join(placement, plan.timeout_s, lambda _said: None)
        show: contextlib.AbstractContextManager[Tell] = contextlib.nullcontext(lambda _said: None)
        if context.rank == 0:
            show = _progress(cells)
        with show as tell:
            comparison = Comparison(plan, placement, tell)
            comparison.run_inside(context, entries, lambda: None)
        command.leave()
        if context.rank != 0:
            return True
    else:
        click.echo(f"# {placement}, one process each; {len(entries)} backends, one after the other")
        with _progress(cells) as tell:
            comparison = Comparison(plan, placement, tell)

            def keep() -> None:
                if output is not None:
                    write_json(output, head, comparison.records, comparison.failures)

            comparison.run(entries, keep)
    records, failures = comparison.records, comparison.failures
    click.echo("\n".join([*tables(records), "#", *summary(records, failures)]))
    if output is not None:
        write_json(output, head, records, failures)
        click.echo(f"# written to {output}")
    ours = [record for record in records if record.backend == "pyallreduce"]
    wanted = any(entry.name == "pyallreduce" for entry in entries)
    return (bool(ours) or not wanted) and all(record.verified for record in ours)


@contextlib.contextmanager
def _progress(cells: int) -> Iterator[Tell]:
    """A bar on a terminal, else one line for every row and mode."""
    console = Console()
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=cells)

        def tell(said: dict[str, Any]) -> None:
            if "begin" in said:
                backend, algorithm, _, mode, nbytes = said["begin"]
                bar.update(task, description=f"{backend} {algorithm} {mode} {nbytes}")
            elif "cell" in said:
                bar.advance(task)
            elif "stage" in said:
                bar.update(task, description=said["stage"])
            elif "failure" in said:
                bar.console.print(f"# missing: {said['failure']}", markup=False, highlight=False)

        yield tell


class _Lines:
    """One line when a row turns to another mode, with the figures so far, and when it was."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._row: tuple[str, ...] = ()
        self._figures: list[str] = []

    def __call__(self, said: dict[str, Any]) -> None:
        if "cell" in said:
            cell = said["cell"]
            row = (cell["backend"], cell["algorithm"], cell["mode"], cell["dtype"])
            if row != self._row:
                self._flush()
                self._row = row
            self._figures.append(f"{cell['us']:.2f}" + ("" if cell["verified"] else "!"))
        elif "done" in said:
            self._flush()
        elif "stage" in said:
            self._flush()
            click.echo(f"# {said['stage']} ({self._at()})")
        elif "failure" in said:
            self._flush()
            click.echo(f"# missing: {said['failure']}")

    def _flush(self) -> None:
        if self._figures:
            click.echo(f"{' '.join(self._row)}: {' '.join(self._figures)} ({self._at()})")
        self._figures = []

    def _at(self) -> str:
        return f"at {time.monotonic() - self._since:.0f} s"


def _slab_bytes(world: int) -> int:
    """Memory that a rank shares; 0 where the module is not built."""
    if _native.state().status not in ("cuda", "host"):
        return 0
    layout = _native.load().Layout(world, Config.from_env().slab_bytes)
    return int(layout.room_apart + layout.bytes)


def _versions() -> dict[str, str]:
    import importlib.metadata

    found = {}
    for package in _PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
