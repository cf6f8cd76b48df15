# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Compile the peers' kernels that are compiled at first use, so that a comparison finds them made.

python bench/compile_peers.py [RANKS ...]    # 2 by default

It takes minutes of the CPU and next to no time of a GPU. A peer that is missing is left out.
"""

from __future__ import annotations

from typing import Any

import click

from pyallreduce.bench.compare import Comparison, Plan
from pyallreduce.bench.peers.registry import ENTRIES, why_missing
from pyallreduce.info import gpu_count
from pyallreduce.launch import Placement

_TIMEOUT_S = 500.0
PLAN = Plan(("bfloat16",), ("graph",), (1024,), 1, 1, 0.0, _TIMEOUT_S, _TIMEOUT_S)


@click.command()
@click.argument("ranks", type=click.IntRange(2, 8), nargs=-1)
def main(ranks: tuple[int, ...]) -> None:
    failed = False
    for world in sorted(set(ranks or (2,))):
        comparison = Comparison(PLAN, Placement(world, gpu_count()), tell)
        comparison.build([e for e in ENTRIES if e.jit and not why_missing(e, world)])
        failed |= bool(comparison.failures)
    raise SystemExit(failed)


def tell(said: dict[str, Any]) -> None:
    click.echo(said.get("stage") or f"missing: {said['failure']}")


if __name__ == "__main__":
    main()
