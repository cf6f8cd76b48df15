# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Calls without end: graphs of mixed sizes and algorithms, random delays in ranks, sums counted.

python bench/soak.py OUT.json [--seconds 40] [--seed 1] [--ranks N]

A graph is a chain of calls on one buffer, x <- sum(x) / N + 1 on every rank: each call's payload
differs from the one before, so that stale data shows, and an error stays until it is counted at the
end. All of that is exact for 2, 4 and 8 ranks.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist

from pyallreduce import Communicator
from pyallreduce.info import gpu_count, header
from pyallreduce.launch import launch, place
from pyallreduce.worker import Context

_SIZES = (1, 37, 512, 4096, 4099, 40_961, 262_144, 1_000_003)
_CHAIN = 120  # sums stay exact in bfloat16: values up to 2 x 121
_GRAPHS = 12
_ROUND_REPLAYS = 400


def run_rank(context: Context, options: dict[str, Any]) -> dict[str, Any]:
    device = torch.device("cuda", context.gpu)
    shared = random.Random(options["seed"])  # the same choices on every rank
    own = random.Random(options["seed"] * 1000 + context.rank)  # delays differ
    with Communicator(device=device) as comm:
        graphs = [_record(comm, shared, own) for _ in range(_GRAPHS)]
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        calls, until = 0, time.monotonic() + options["seconds"]
        while _everybody(time.monotonic() < until):
            for _ in range(_ROUND_REPLAYS):
                graph, x, _ = shared.choice(graphs)
                x.fill_(0.0)
                graph.replay()
                wrong += (x != _CHAIN).sum()
                calls += _CHAIN
            torch.cuda.synchronize()
            comm.check()
        return {"calls": calls, "wrong": int(wrong)}


def _record(
    comm: Communicator, shared: random.Random, own: random.Random
) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
    """A graph, the tensor that it counts up, and what it adds, which has to live as long."""
    dtype = shared.choice((torch.float32, torch.float16, torch.bfloat16))
    x = torch.zeros(shared.choice(_SIZES), dtype=dtype, device=comm.device)
    one = torch.ones_like(x)
    cuda: Any = torch.cuda
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(_CHAIN):
            if own.random() < 0.05:
                cuda._sleep(own.randrange(1, 60_000))  # up to about 30 us
            comm.all_reduce(x, out=x, algorithm=shared.choice(("one_shot", "two_shot", "auto")))
            torch.add(one, x, alpha=1 / comm.world_size, out=x)
    return graph, x, one


def _everybody(go_on: bool) -> bool:
    token = torch.tensor([int(go_on)])
    dist.all_reduce(token, dist.ReduceOp.MIN)
    return bool(token)


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--ranks", type=click.IntRange(2, 8))
@click.option("--seconds", default=40.0)
@click.option("--seed", default=1)
def main(output: Path, ranks: int | None, seconds: float, seed: int) -> None:
    placement = place(ranks, "cuda", gpus=gpu_count(), share_gpu=False)
    options = {"seconds": seconds, "seed": seed}
    results = launch("soak:run_rank", options, placement, deadline_s=seconds + 90)
    command = f"bench/soak.py --seconds {seconds:g} --seed {seed}"
    content = {"header": header(command), "world": placement.ranks, "seed": seed, "ranks": results}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    wrong = sum(result["wrong"] for result in results)
    click.echo(f"{results[0]['calls']} calls on {placement}, seed {seed}: {wrong} wrong elements")
    raise SystemExit(wrong != 0)


if __name__ == "__main__":
    main()
