# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Graph-replay latency of ranks on one GPU in one process, in us: what instructions cost.

python tests/gpu/latency.py OUT.json [-b 1K] [-e 64K] [--samples 12]

Not NVLink: data are there sooner than over a wire, and all ranks share caches and SMs. For builds
measured in turn: `bench/race.py --local`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from pyallreduce.bench.candidates import sizes_between
from pyallreduce.bench.options import parse_size
from pyallreduce.policy import ONE_SHOT, TWO_SHOT, Plan
from pyallreduce.reference import rank_order_sum

sys.path.insert(0, str(Path(__file__).parent))
from local_group import LocalGroup, random_inputs

_CALLS = 200
_LANES = (32, 128, 256)
_MOST_BLOCKS = 128  # of all ranks together, so that every grid and the next one have room


def measure(group: LocalGroup, nbytes: int, plan: Plan, samples: int) -> float:
    """The median of a call's time on the rank that began last: the others wait for it."""
    tensors = [t * 0 for t in random_inputs(group.world, nbytes // 2, torch.bfloat16, 0)]
    graphs = []
    for rank, stream in enumerate(group.streams):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(_CALLS):
                group.launch(rank, tensors[rank], tensors[rank], plan)
        graphs.append(graph)
    times = [_replay(group, graphs) for _ in range(2 + samples)]
    assert not any(r.state() for r in group.ranks)
    return statistics.median(times[2:])


def _replay(group: LocalGroup, graphs: Sequence[torch.cuda.CUDAGraph]) -> float:
    torch.cuda.synchronize()
    ends = []
    for graph, stream in zip(graphs, group.streams, strict=True):
        with torch.cuda.stream(stream):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            ends.append((begin, end))
    torch.cuda.synchronize()
    return min(b.elapsed_time(e) for b, e in ends) * 1e3 / _CALLS


def is_right(group: LocalGroup, nbytes: int, plan: Plan) -> bool:
    inputs = random_inputs(group.world, nbytes // 2, torch.bfloat16, 1)
    outs = [torch.empty_like(x) for x in inputs]
    expected = rank_order_sum(inputs)
    torch.cuda.synchronize()
    for rank, stream in enumerate(group.streams):
        with torch.cuda.stream(stream):
            group.launch(rank, inputs[rank], outs[rank], plan)
    torch.cuda.synchronize()
    return all(torch.equal(out, expected) for out in outs)


def plans(world: int, nbytes: int) -> list[Plan]:
    """One vector a lane, in every shape that leaves room for all ranks."""
    found = []
    for algorithm in (ONE_SHOT, TWO_SHOT):
        vectors = max(1, nbytes // 16 // (1 if algorithm == ONE_SHOT else world))
        for lanes in _LANES:
            blocks = -(-vectors // lanes)
            if blocks * world <= _MOST_BLOCKS:
                found.append(Plan(algorithm, blocks, lanes))
            if blocks == 1:
                break
    return found


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("-b", "--minbytes", default="1K")
@click.option("-e", "--maxbytes", default="64K")
@click.option("--samples", default=12)
def main(output: Path, minbytes: str, maxbytes: str, samples: int) -> None:
    records: list[dict[str, Any]] = []
    for world in (2, 4):
        group = LocalGroup(world, 8 << 20, 128)
        for nbytes in sizes_between(parse_size(minbytes), parse_size(maxbytes))[::2]:
            for plan in plans(world, nbytes):
                us = round(measure(group, nbytes, plan, samples), 3)
                row = {"bytes": nbytes, "algorithm": f"{plan.name} of {world}", "us": us}
                row |= {"blocks": plan.blocks, "lanes": plan.lanes}
                records.append({**row, "right": is_right(group, nbytes, plan)})
                click.echo(records[-1])
        group.close()
    output.write_text(json.dumps({"records": records}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
