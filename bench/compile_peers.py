# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Compile the peers' kernels that are compiled at first use, so that a comparison finds them made.

python bench/compile_peers.py [RANKS ...]    # 2 by default

It takes minutes of the CPU and no time of a GPU. A peer that is missing is left out.
"""

from __future__ import annotations

import importlib
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import click
import torch

from pyallreduce.bench.peers.registry import ENTRIES, why_missing


def compile_one(module: str, worlds: tuple[int, ...]) -> float:
    """Seconds that it took."""
    since = time.monotonic()
    for world in worlds:
        importlib.import_module(module).build(world, [torch.bfloat16])
    return time.monotonic() - since


@click.command()
@click.argument("ranks", type=click.IntRange(2, 8), nargs=-1)
def main(ranks: tuple[int, ...]) -> None:
    worlds = ranks or (2,)
    present = [entry for entry in ENTRIES if entry.jit and not why_missing(entry, worlds[0])]
    failed = 0
    with ProcessPoolExecutor(len(present) or 1, get_context("spawn")) as pool:
        jobs = {pool.submit(compile_one, entry.module, worlds): entry for entry in present}
        for job in as_completed(jobs):
            name = jobs[job].name
            if error := job.exception():
                failed += 1
                click.echo(f"{name}: {type(error).__name__}: {error}")
            else:
                click.echo(f"{name}: {job.result():.0f} s")
    raise SystemExit(failed != 0)


if __name__ == "__main__":
    main()
