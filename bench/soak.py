# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Calls without end: graphs of mixed sizes and algorithms, random delays in ranks, sums counted.

python bench/soak.py OUT.json [--seconds 40] [--seed 1] [--ranks 2|4|8]

A graph is a chain of calls on one buffer, so that each call's payload differs from the one before:
stale data shows, and an error stays until it is counted at the end. Most chains double, x <-
sum(x), and are nothing but calls; the others count, x <- sum(x) / N + 1. All of that is exact, for
2, 4 and 8 ranks; bfloat16 would round away what a count lacks.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist

from pyallreduce import Communicator
from pyallreduce.info import gpu_count, header
from pyallreduce.launch import launch, place
from pyallreduce.worker import Context

# Elements, and how often such a graph is replayed: small calls make the number, and the largest
# goes through its mailboxes in laps.
_SIZES = {
    1: 20,
    37: 20,
    512: 20,
    4096: 20,
    4099: 20,
    40_961: 10,
    262_144: 2,
    1_000_003: 1,
    40_000_003: 0.02,
}
_GRAPHS_A_SIZE = 3
_COUNTED = 120  # calls of a counting chain: sums up to 121 times N, exact in float16
_DOUBLINGS = 120  # of a doubling chain: 2^120 is finite in bfloat16 and float32
_DELAYED = 0.01  # of the calls, on each rank
_ROUND_REPLAYS = 400
_MOST_FORCED = 1 << 21  # elements: one-shot would be dozens of launches


@dataclass(frozen=True)
class Chain:
    """A graph on `x`, what it makes of ones (a sum of which is wrong where it differs), its calls,
    and what it reads, which has to live as long."""

    graph: torch.cuda.CUDAGraph
    x: torch.Tensor
    result: float
    calls: int
    kept: torch.Tensor


def run_rank(context: Context, options: dict[str, Any]) -> dict[str, Any]:
    device = torch.device("cuda", context.gpu)
    shared = random.Random(options["seed"])  # the same choices on every rank
    own = random.Random(options["seed"] * 1000 + context.rank)  # delays differ
    with Communicator(device=device) as comm:
        assert comm.decision.backend == "native", comm.decision.reason
        sizes = [size for size in _SIZES for _ in range(_GRAPHS_A_SIZE)]
        chains = [_record(comm, size, shared, own) for size in sizes]
        weights = [_SIZES[size] for size in sizes]
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        calls, until = Counter[int](), time.monotonic() + options["seconds"]
        while _everybody(time.monotonic() < until):
            for chain in shared.choices(chains, weights, k=_ROUND_REPLAYS):
                chain.x.fill_(1.0)
                chain.graph.replay()
                wrong += (chain.x != chain.result).sum()
                calls[chain.x.numel()] += chain.calls
            torch.cuda.synchronize()
            comm.check()
        by_size = {str(size): calls[size] for size in sorted(calls)}
        return {"calls": calls.total(), "by_elements": by_size, "wrong": int(wrong)}


def _record(comm: Communicator, size: int, shared: random.Random, own: random.Random) -> Chain:
    doubles = shared.random() < 0.7
    dtypes = (torch.float32, torch.bfloat16) if doubles else (torch.float32, torch.float16)
    x = torch.zeros(size, dtype=shared.choice(dtypes), device=comm.device)
    one = torch.ones_like(x)
    world = comm.world_size
    calls = _DOUBLINGS // (world.bit_length() - 1) if doubles else _COUNTED
    algorithms = ("two_shot", "auto") if size > _MOST_FORCED else ("one_shot", "two_shot", "auto")
    cuda: Any = torch.cuda
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            if own.random() < _DELAYED:
                cuda._sleep(own.randrange(1, 60_000))  # up to about 30 us
            comm.all_reduce(x, out=x, algorithm=shared.choice(algorithms))
            if not doubles:
                torch.add(one, x, alpha=1 / world, out=x)
    return Chain(graph, x, float(world) ** calls if doubles else 1.0 + calls, calls, one)


def _everybody(go_on: bool) -> bool:
    token = torch.tensor([int(go_on)])
    dist.all_reduce(token, dist.ReduceOp.MIN)
    return bool(token)


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--ranks", type=click.Choice(["2", "4", "8"]), help="[default: one a GPU]")
@click.option("--seconds", default=40.0)
@click.option("--seed", default=1)
def main(output: Path, ranks: str | None, seconds: float, seed: int) -> None:
    gpus = gpu_count()
    placement = place(int(ranks or gpus), "cuda", gpus=gpus, share_gpu=False)
    if placement.ranks not in (2, 4, 8):  # powers of other numbers are not exact
        raise click.BadParameter(f"{placement.ranks} ranks: expected 2, 4 or 8")
    options = {"seconds": seconds, "seed": seed}
    results = launch("soak:run_rank", options, placement, deadline_s=seconds + 90)
    command = f"bench/soak.py --ranks {placement.ranks} --seconds {seconds:g} --seed {seed}"
    content = {"header": header(command), "world": placement.ranks, "seed": seed, "ranks": results}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    wrong = sum(result["wrong"] for result in results)
    click.echo(f"{results[0]['calls']} calls on {placement}, seed {seed}: {wrong} wrong elements")
    raise SystemExit(wrong != 0)


if __name__ == "__main__":
    main()
