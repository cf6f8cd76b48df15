# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Race every launch shape of both algorithms on this machine and print the best three of each size.

python bench/sweep.py OUT.json [--ranks N] [-b 1K] [-e 16M] [--samples 20] [-d bfloat16]
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from pyallreduce.bench.options import parse_size
from pyallreduce.config import Config
from pyallreduce.info import gpu_count, header
from pyallreduce.launch import launch, place

TARGET = "pyallreduce.bench.candidates:run_rank"


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--ranks", type=click.IntRange(2, 8))
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto")
@click.option("-b", "--minbytes", default="1K")
@click.option("-e", "--maxbytes", default="16M")
@click.option("--samples", default=20)
@click.option("-n", "--iters", type=int, help="Calls of a sample. [default: as bench]")
@click.option("-d", "--datatype", default="bfloat16")
@click.option("--timeout", default=540.0)
def main(
    output: Path,
    ranks: int | None,
    device: Any,
    minbytes: str,
    maxbytes: str,
    samples: int,
    iters: int | None,
    datatype: str,
    timeout: float,
) -> None:
    placement = place(ranks, device, gpus=gpu_count(), share_gpu=Config.from_env().share_gpu)
    options = {
        "min_bytes": parse_size(minbytes),
        "max_bytes": parse_size(maxbytes),
        "samples": samples,
        "calls": iters,
        "dtype": datatype,
    }
    head = header(f"bench/sweep.py {minbytes} to {maxbytes}, {samples} samples")
    records: list[dict[str, Any]] = []
    start = time.monotonic()

    def hear(_rank: int, said: dict[str, Any]) -> None:
        if "start" in said:
            print(f"# {placement}; {said['start']['backend']}: {said['start']['reason']}")
            print(f"# {'bytes':>10} {'algorithm':>9} {'blocks':>6} {'lanes':>5} {'us':>9}  floor")
        elif "size" in said:
            took = time.monotonic() - start
            print(f"# {said['size']}: {said['of']} candidates (at {took:.0f} s)", flush=True)
        else:
            show(said["outcomes"])
            records.extend(said["outcomes"])
            # After each size: what was measured outlives a deadline.
            output.parent.mkdir(parents=True, exist_ok=True)
            content = {"header": head, "world": placement.ranks, "records": records}
            output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    launch(TARGET, options, placement, deadline_s=timeout, on_report=hear)


def show(outcomes: list[dict[str, Any]]) -> None:
    best = sorted((o for o in outcomes if o["right"]), key=lambda o: o["us"])
    for o in best[:3]:
        over = f"{o['us'] / o['floor']:.2f}"
        shape = f"{o['algorithm']:>9} {o['blocks']:6d} {o['lanes']:5d}"
        print(f"{o['bytes']:12d} {shape} {o['us']:9.2f}  {over}", flush=True)
    for o in outcomes:
        if not o["right"]:
            print(f"{o['bytes']:12d} WRONG: {o['algorithm']} {o['blocks']} x {o['lanes']}")


if __name__ == "__main__":
    main()
