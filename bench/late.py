#!/usr/bin/env python3
# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""One rank comes late: what does that cost the calls behind it?

python bench/late.py OUT.json [--ranks N] [--calls 100] [--times 6] [--algorithm one_shot]

On every rank a graph of calls, each depending on the last, starts at the same moment, but for rank
1, whose stream sleeps first. Printed is what a call takes from then on, by that rank's events: the
lateness itself is not in it, so that a line should have one number. (Waits that look at the host
too often did not: NOTES.md, entry 26.)
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist

from pyallreduce import Communicator
from pyallreduce.bench import timing
from pyallreduce.info import gpu_count, header
from pyallreduce.launch import launch, place
from pyallreduce.worker import Context

_SIZES = (32 << 10, 256 << 10, 1 << 20)
LATE_US = (0, 60, 200, 500, 2_000, 10_000)
_CYCLES_A_US = 1_700
_LATE_RANK = 1


def run_rank(context: Context, options: dict[str, Any]) -> dict[str, list[list[float]]]:
    """By bytes, for each of LATE_US: this rank's us of a call, the median and the longest."""
    device = torch.device("cuda", context.gpu)
    found = {}
    with Communicator(device=device) as comm:
        assert comm.decision.backend == "native", comm.decision.reason
        for nbytes in _SIZES:
            x = timing.zero_sum(context.rank, context.world, nbytes // 2, torch.bfloat16, device)
            graph = _record(comm, x, options)
            found[str(nbytes)] = [
                _late(comm, x, graph, late * (context.rank == _LATE_RANK), options)
                for late in LATE_US
            ]
        comm.check()
    return found


def _record(comm: Communicator, x: torch.Tensor, options: dict[str, Any]) -> torch.cuda.CUDAGraph:
    comm.all_reduce(x, out=x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(options["calls"]):
            comm.all_reduce(x, out=x, algorithm=options["algorithm"])
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _late(
    comm: Communicator,
    x: torch.Tensor,
    graph: torch.cuda.CUDAGraph,
    late_us: int,
    options: dict[str, Any],
) -> list[float]:
    cuda: Any = torch.cuda
    took = []
    for _ in range(options["times"]):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        dist.barrier()
        cuda._sleep(timing.SPIN_CYCLES)  # until all that follows is queued
        comm.all_reduce(x, out=x)  # from here on together
        if late_us:
            cuda._sleep(late_us * _CYCLES_A_US)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        took.append(begin.elapsed_time(end) * 1e3 / options["calls"])
    return [round(statistics.median(took), 2), round(max(took), 2)]


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--ranks", type=click.IntRange(2, 8), help="[default: one a GPU]")
@click.option("--calls", default=100)
@click.option("--times", default=6)
@click.option("--algorithm", type=click.Choice(["auto", "one_shot", "two_shot"]), default="auto")
def main(output: Path, ranks: int | None, calls: int, times: int, algorithm: str) -> None:
    placement = place(ranks, "cuda", gpus=gpu_count(), share_gpu=False)
    options = {"calls": calls, "times": times, "algorithm": algorithm}
    results = launch("late:run_rank", options, placement, deadline_s=50)
    arguments = " ".join(f"--{name} {value}" for name, value in options.items())
    command = f"bench/late.py --ranks {placement.ranks} {arguments}"
    content = {"header": header(command), "late_us": LATE_US, "late_rank": _LATE_RANK}
    output.write_text(json.dumps({**content, "ranks": results}, indent=1) + "\n", encoding="utf-8")
    click.echo(f"us of a call behind rank {_LATE_RANK}, late by us; in brackets the longest")
    for nbytes, line in results[_LATE_RANK].items():
        cells = (f"{us}: {t[0]} ({t[1]})" for us, t in zip(LATE_US, line, strict=True))
        click.echo(f"{int(nbytes) >> 10:5} KiB  " + "  ".join(cells))


if __name__ == "__main__":
    main()
