#!/usr/bin/env python3
# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What an eager call costs the host, all backends in turn in the same processes.

python bench/eager_host.py OUT.json [--ranks N] [--bytes 8192] [--turns 30] [NAME ...]

`bench --compare` gives every backend processes of its own, minutes apart, in which the speed of a
host changes by half (NOTES.md, entry 38). Here each has a turn of CALLS calls, then the next one;
the order changes from round to round. NAMEs are those of `bench --compare --backends`. A turn's
time is that of its slowest rank, without its waits for the device.
"""

from __future__ import annotations

import importlib
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import click
import torch

from pyallreduce.bench import timing
from pyallreduce.bench.command import environment
from pyallreduce.bench.peers.base import Peer, Place
from pyallreduce.bench.peers.registry import choose, why_missing
from pyallreduce.info import gpu_count, header
from pyallreduce.launch import launch, place
from pyallreduce.worker import Context

CALLS = 200
_DTYPE = torch.bfloat16


def run_rank(context: Context, options: dict[str, Any]) -> dict[str, Any]:
    """By backend the µs of a call on the host in each turn, slowest rank, and wrong elements."""
    device = torch.device("cpu") if context.gpu is None else torch.device("cuda", context.gpu)
    nbytes, world = options["bytes"], context.world
    peers: dict[str, Peer] = {}
    for name, module, algorithm, jit in options["peers"]:
        maker = importlib.import_module(module)
        if jit and context.rank == 0:  # the others find what it made
            maker.build(world, [_DTYPE])
        timing.meet()
        peer = maker.make(algorithm, Place(context.rank, world, device, ((nbytes, 1),)))
        if peer.serves(nbytes, _DTYPE, "eager"):
            peers[name] = peer
        else:
            peer.close()
    start = timing.zero_sum(context.rank, world, nbytes // 2, _DTYPE, device)
    last = {
        name: peer.buffers(1, nbytes // 2, _DTYPE)[0].copy_(start) for name, peer in peers.items()
    }
    times: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(-1, options["turns"]):  # the first loads code
        for name in random.Random(turn).sample(sorted(peers), len(peers)):
            took = _turn(peers[name], last, name)
            if turn >= 0:
                times[name].append(took)
    wrong = {name: int(x.count_nonzero()) for name, x in last.items()}
    for peer in peers.values():
        peer.check()
        peer.close()
    return {"times_us": {n: _rounded(timing.slowest(t)) for n, t in times.items()}, "wrong": wrong}


def _rounded(times: list[float]) -> list[float]:
    return [round(us, 3) for us in times]


def _turn(peer: Peer, last: dict[str, torch.Tensor], name: str) -> float:
    x = last[name]
    if peer.place.device.type == "cuda":
        torch.cuda.synchronize(peer.place.device)
    timing.meet()
    begin = time.perf_counter()
    for _ in range(CALLS):
        x = peer.all_reduce(x)
    took = time.perf_counter() - begin
    last[name] = x
    return took * 1e6 / CALLS


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("names", nargs=-1)
@click.option("--ranks", type=click.IntRange(2, 8), help="[default: one a GPU]")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--bytes", "nbytes", default=8192, show_default=True)
@click.option("--turns", default=30, show_default=True)
@click.option("--deadline", default=120.0, show_default=True, help="Seconds for all of it.")
def main(
    output: Path,
    names: tuple[str, ...],
    ranks: int | None,
    device: Literal["cuda", "cpu"],
    nbytes: int,
    turns: int,
    deadline: float,
) -> None:
    gpus = gpu_count() if device == "cuda" else 0
    placement = place(ranks, device, gpus=gpus, share_gpu=False)
    wanted = choose(names, device)
    found = [entry for entry in wanted if not why_missing(entry, placement.ranks)]
    peers = [(f"{e.name} {a}", e.module, a, e.jit) for e in found for a in e.algorithms]
    options = {"bytes": nbytes, "turns": turns, "peers": peers}
    results = launch("eager_host:run_rank", options, placement, deadline_s=deadline)
    command = f"bench/eager_host.py --ranks {placement.ranks} --bytes {nbytes} --turns {turns}"
    head = {**header(" ".join([command, *names])), "environment": environment()}
    content = {"header": head, "bytes": nbytes, "calls": CALLS, **results[0]}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    click.echo(
        f"us of an eager call of {nbytes} bytes on the host: median, least, most of {turns} turns"
    )
    wrong = {name: sum(rank["wrong"][name] for rank in results) for name in results[0]["wrong"]}
    for middle, name, times in sorted(
        (statistics.median(times), name, times) for name, times in results[0]["times_us"].items()
    ):
        line = f"{name:24} {middle:8.2f} {min(times):8.2f} {max(times):8.2f}"
        click.echo(line + (f"  {wrong[name]} WRONG" if wrong[name] else ""))
    if absent := [entry.name for entry in wanted if entry not in found]:
        click.echo(f"not here: {', '.join(absent)}")
    if any(wrong.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
