# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Race variants of the kernels: each is built from a few patches and swept on the same GPUs.

python bench/race.py VARIANTS.json FOLDER [-b 1K] [-e 16M] [--samples 15] [--seconds 60]
    [--rounds 1] [--shipped | --local | --alternate]

VARIANTS.json maps a name to patches of csrc/protocol: {"main": [], "late": [["wait.h", old, new]]}.
All are built at once, then swept in turn by bench/sweep.py; the best of each size and algorithm is
printed side by side. --shipped: only the shapes of the shipped table, by `pyallreduce bench`, which
takes a tenth of the time. --local: ranks on one GPU, by tests/gpu/latency.py: what instructions
cost, without a wire. --alternate: all builds have their ranks on the same GPUs at once and measure
one-shot in turn, as in bench/safety_cost.py: the smallest differences. FOLDER keeps every result.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import safety_cost
from differences import difference
from variants import build

from pyallreduce.bench.candidates import sizes_between
from pyallreduce.bench.options import parse_size
from pyallreduce.info import gpu_count

BENCH = ("--backend", "one_shot", "--backend", "two_shot", "-G")
Best = dict[tuple[int, str], dict[str, str]]


@click.command()
@click.argument("variants", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("-b", "--minbytes", default="1K")
@click.option("-e", "--maxbytes", default="16M")
@click.option("--samples", default=15)
@click.option("--seconds", default=60.0, help="For the sweep of one variant.")
@click.option("--rounds", default=1, help="How often all are swept in turn.")
@click.option("--shipped", is_flag=True, help="No sweep: only the shapes of the shipped table.")
@click.option("--local", is_flag=True, help="No sweep: ranks on one GPU.")
@click.option("--alternate", is_flag=True, help="No sweep: one-shot, all builds in turn.")
def main(
    variants: Path,
    folder: Path,
    minbytes: str,
    maxbytes: str,
    samples: int,
    seconds: float,
    rounds: int,
    shipped: bool,
    local: bool,
    alternate: bool,
) -> None:
    patches: dict[str, Any] = json.loads(variants.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor() as pool:
        trees = {name: Path(place) / name for name in patches}
        for _ in pool.map(lambda name: build(trees[name], patches[name]), patches):
            pass
        if alternate:
            alternately(trees, (parse_size(minbytes), parse_size(maxbytes)), samples, folder)
            return
        sizes = ["-b", minbytes, "-e", maxbytes]
        for turn, name in itertools.product(range(rounds), trees):
            output = str(folder.absolute() / f"{name}-{turn}.json")
            sweep = ["bench/sweep.py", output, *sizes, "--samples", str(samples)]
            bench = ["-m", "pyallreduce", "bench", "--json", output, *sizes, *BENCH, str(samples)]
            here = ["tests/gpu/latency.py", output, *sizes, "--samples", str(samples)]
            command = [sys.executable, *(here if local else bench if shipped else sweep)]
            click.echo(f"{name}: {run(command, trees[name], seconds)}")
    for (nbytes, algorithm), by_variant in sorted(best(folder, list(patches), rounds).items()):
        cells = "  ".join(f"{name} {cell}" for name, cell in by_variant.items())
        click.echo(f"{nbytes:>10} {algorithm}  {cells}")


def alternately(trees: dict[str, Path], sizes: tuple[int, int], turns: int, folder: Path) -> None:
    """Medians by size, and how far each is from the first build, turn by turn (95 %)."""
    gpus = gpu_count()
    first, *others = trees
    for nbytes in sizes_between(*sizes):
        job = {"ranks": gpus or 2, "gpus": gpus, "bytes": nbytes, "turns": turns}
        times = safety_cost.alternate(trees, job)
        (folder / f"{nbytes}.json").write_text(json.dumps(times, indent=1), encoding="utf-8")
        cells = [f"{nbytes:>10}  {first} {statistics.median(times[first]):.3f}"]
        for name in others:
            mean, half = difference(times[name], times[first])
            cells.append(f"{name} {statistics.median(times[name]):.3f} ({mean:+.3f} ± {half:.3f})")
        click.echo("  ".join(cells))


def run(command: list[str], tree: Path, seconds: float) -> str:
    """How it ended: a variant that hangs costs its own time and no other's."""
    environ = {**os.environ, "PYTHONPATH": str(tree)}
    try:
        result = subprocess.run(
            command, cwd=tree, env=environ, stdout=subprocess.DEVNULL, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"late after {seconds:g} s"
    return f"exit {result.returncode}"


def best(folder: Path, names: list[str], rounds: int) -> Best:
    """The fastest right candidate of each size and algorithm, by variant."""
    found: Best = {}
    for name in names:
        paths = [folder / f"{name}-{turn}.json" for turn in range(rounds)]
        texts = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
        records = [record for text in texts for record in json.loads(text)["records"]]
        right = (r for r in records if r.get("right", r.get("verified")))
        for r in sorted(right, key=lambda r: r["us"]):
            shape = f" ({r['blocks']}x{r['lanes']})" if "lanes" in r else ""
            cell = f"{r['us']:.3f}{shape}"
            found.setdefault((r["bytes"], r["algorithm"]), {}).setdefault(name, cell)
    return found


if __name__ == "__main__":
    main()
