# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`pyallreduce bench` as its starter sees it: under torchrun one of its ranks, else the starter of
all."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pyallreduce.bench import report
from pyallreduce.bench.options import Options
from pyallreduce.config import Config
from pyallreduce.info import gpu_count, header
from pyallreduce.launch import DeviceChoice, LaunchError, Placement, launch, place
from pyallreduce.worker import Context

__all__ = [
    "environment",
    "join",
    "leave",
    "run",
    "under_torchrun",
    "where",
    "without_graph_mixing",
]

# By default NCCL records an event on a side branch of the graph at each captured call, so that
# calls of several graphs may be in flight at once: nobody here promises that.
_MIXING = "NCCL_GRAPH_MIXING_SUPPORT"
# What keeps multicast out of a measurement, where the machine sets it.
_NO_MULTICAST = ("NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST", "NVSHMEM_DISABLE_NVLS")

_TARGET = "pyallreduce.bench.run:run_rank"


def where(ranks: int | None, device: DeviceChoice) -> Placement:
    """The ranks to start, or those that torchrun has started.

    Raises:
        LaunchError: the machine does not have what is asked for.
    """
    share_gpu = Config.from_env().share_gpu
    if not under_torchrun():
        return place(ranks, device, gpus=gpu_count(), share_gpu=share_gpu)
    world = int(os.environ["WORLD_SIZE"])
    if ranks not in (None, world):
        raise LaunchError(f"--ranks {ranks}: torchrun has started {world}")
    gpus = gpu_count()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    enough = gpus >= local or (gpus > 0 and share_gpu)
    if device == "cuda" and not enough:
        raise LaunchError(f"device cuda: {local} ranks on this host, which shows {gpus} GPUs")
    return Placement(world, gpus if enough and device != "cpu" else 0)


def run(
    options: Options, placement: Placement, *, timeout_s: float, output: Path | None, command: str
) -> bool:
    """Measure, print as results come, write `output`; whether everything was right.

    Raises:
        LaunchError: a rank failed.
    """
    without_graph_mixing()
    printer = _Printer(options, placement)
    if under_torchrun():
        context = join(placement, timeout_s, printer)
        from pyallreduce.bench.run import run_rank

        run_rank(context, asdict(options))
        leave()
        first = context.rank == 0
    else:
        launch(
            _TARGET,
            asdict(options),
            placement,
            deadline_s=timeout_s,
            on_report=lambda _rank, said: printer(said),
        )
        first = True
    if not first:
        return True
    click.echo("\n".join(report.footer(printer.records)))
    if output is not None:
        report.write_json(
            output, {**header(command), "environment": environment()}, printer.records
        )
    return all(record.wrong == 0 for record in printer.records)


class _Printer:
    """Prints what rank 0 says, and keeps its records."""

    def __init__(self, options: Options, placement: Placement) -> None:
        self.records: list[report.Record] = []
        self._options = options
        self._placement = placement

    def __call__(self, said: dict[str, Any]) -> None:
        for kind, show in self._kinds().items():
            if kind in said:
                show(said[kind])

    def _kinds(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        return {"start": self._start, "section": self._section, "row": self._row}

    def _start(self, decision: dict[str, Any]) -> None:
        click.echo(f"# {self._placement}")
        click.echo(f"# backend {decision['backend']}: {decision['reason']}")
        click.echo(
            f"# in place; median of {self._options.samples} samples, slowest rank; aligned start"
        )

    def _section(self, section: dict[str, Any]) -> None:
        click.echo(f"#\n# {section['mode']}, {section['dtype']}")
        click.echo("\n".join(report.heading(section["titles"])))

    def _row(self, row: dict[str, Any]) -> None:
        cells = [None if cell is None else report.Record(**cell) for cell in row["cells"]]
        self.records += [cell for cell in cells if cell is not None]
        itemsize = 4 if row["dtype"] == "float32" else 2
        click.echo(report.row(row["bytes"], row["bytes"] // itemsize, row["dtype"], cells))


def without_graph_mixing() -> None:
    """NCCL as fast as it can be in graphs, for all ranks, which are yet to start or to join; a
    choice of the user's stays."""
    os.environ.setdefault(_MIXING, "0")


def environment() -> dict[str, str]:
    """For a result's header: the variables that other backends' times depend on."""
    return {k: os.environ[k] for k in (_MIXING, *_NO_MULTICAST) if k in os.environ}


def under_torchrun() -> bool:
    """Whether this process is one of the ranks that torchrun has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join(placement: Placement, timeout_s: float, say: Callable[[Any], None]) -> Context:
    """Become the rank that torchrun says."""
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = None
    if placement.gpus:
        gpu = int(os.environ.get("LOCAL_RANK", rank)) % placement.gpus
        torch.cuda.set_device(gpu)
    wait = datetime.timedelta(seconds=min(timeout_s, 300))
    dist.init_process_group(placement.backend, timeout=wait)
    return Context(rank, world, gpu, say)


def leave() -> None:
    """End what `join` began."""
    import torch.distributed as dist

    dist.destroy_process_group()
