# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`pyallreduce check` as its starter sees it: launch, show progress, print table and verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pyallreduce.check.report import Verdict, edge_matrix, join, table
from pyallreduce.config import Config
from pyallreduce.info import gpu_count
from pyallreduce.launch import DeviceChoice, launch, place

__all__ = ["run"]

_TARGET = "pyallreduce.check.rank:run_rank"


def run(
    ranks: int | None,
    device: DeviceChoice,
    *,
    timeout_s: float,
    quick: bool,
    dtypes: Sequence[str],
    verbose: bool,
    inject: bool,
) -> Verdict:
    """Check this machine and print what comes of it; `dtypes` none means all.

    Raises:
        LaunchError: the ranks can't be placed, or one of them failed.
    """
    config = Config.from_env()
    placement = place(ranks, device, gpus=gpu_count(), share_gpu=config.share_gpu)
    click.echo(f"pyallreduce check: {placement}")
    options = {"quick": quick, "inject": inject, "dtypes": list(dtypes)}
    with _progress() as show:
        results = launch(
            _TARGET,
            options,
            placement,
            deadline_s=timeout_s,
            on_report=lambda _rank, report: show(report),
        )
    verdict = join(results, str(placement))
    click.echo("\n".join(table(verdict.lines, verbose=verbose)))
    if verbose:
        click.echo("\n".join(f"table: {line}" for line in verdict.decision["table"]))
        click.echo(f"live checks at start-up: {verdict.validation_ms:.0f} ms; edges, us a round:")
        click.echo("\n".join(edge_matrix(verdict.edges)))
        click.echo(f"remedy: {verdict.decision['remedy']}")
    click.echo(str(verdict))
    return verdict


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on a terminal, else one line for every dtype and algorithm."""
    console = Console()
    if not console.is_terminal:
        yield _PlainProgress()
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting the ranks", total=None)

        def show(report: dict[str, Any]) -> None:
            bar.update(
                task, completed=report["done"], total=report["of"], description=report["label"]
            )

        yield show


class _PlainProgress:
    """One line when the dtype or the algorithm changes."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, report: dict[str, Any]) -> None:
        stage = " ".join(report["label"].split()[:2])
        if stage != self._last:
            self._last = stage
            click.echo(f"{report['done']}/{report['of']} {stage}")
