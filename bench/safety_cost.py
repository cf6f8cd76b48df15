# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What bounded waits, abort polling and signatures cost together: two builds, measured in turn.

python bench/safety_cost.py OUT.json [--ranks N] [--bytes 1024] [--turns 24] [--bare FOLDER]

The bare build is this tree with the PATCHES below, made in FOLDER unless it is there; --build-only
makes it alone. Both builds have their ranks on the same GPUs at the same time and measure
alternately, one graph of 200 calls at a time. Where slab and message lie moves a call by more than
safety costs: every turn has a communicator and memory of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
from differences import difference
from variants import ROOT, Patch, build

from pyallreduce import Communicator
from pyallreduce.bench import timing
from pyallreduce.bench.backends import Ours
from pyallreduce.info import gpu_count, header
from pyallreduce.worker import Context

_CALLS, _REPLAYS = 200, 20
_ANSWER_S = 60.0
_SEED, _MOST_PAGES, _PAGE = 5, 20, 1 << 20  # pages of 2 MiB, in bfloat16
# Of one-shot alone: it carries what is measured here.
PATCHES: list[Patch] = [
    ("one_shot.h", "  signatures.send(block, turn);\n", ""),
    ("one_shot.h", "  signatures.check(block, turn);\n", ""),
    ("one_shot.h", "  enter(block, turn);\n", ""),
    ("one_shot.h", "  leave_by_owner(block, turn);\n", ""),
    ("one_shot.h", " | signatures.bits()", ""),
    ("one_shot.h", "if (!block.all(turn.ok())) turn.join();", "if (step > 0) block.all(true);"),
    ("wait.h", "if (__builtin_expect(polls % kPollsPerLook != 0, 1)) continue;", "continue;"),
    ("wait.h", "stop = stop_of(words.w[0], generation);", "stop = Stop::kNone;"),
]


def run_rank(context: Context, options: dict[str, Any]) -> None:
    """Measure whenever it is this build's turn; rank 0 puts the µs of a call into the store."""
    # The other build is no stranger. (A filter holds for its own logger alone: agree.py's.)
    logging.getLogger("pyallreduce.agree").addFilter(
        lambda record: "FOREIGN_PROCESS" not in record.getMessage()
    )
    c10d: Any = dist
    store = c10d.TCPStore("127.0.0.1", options["port"], is_master=False)
    device = torch.device("cpu") if context.gpu is None else torch.device("cuda", context.gpu)
    places = random.Random(_SEED)  # the same on all ranks and in both builds
    elements = options["bytes"] // 2
    taken = []
    # All stay open until the end, or the next slab would take the place of the one before.
    with contextlib.ExitStack() as communicators:
        for turn in range(options["turns"]):
            store.wait([f"{options['build']} {turn}"])  # a start, too, would disturb the other
            at = places.randrange(1, _MOST_PAGES) * _PAGE
            taken.append(torch.empty(at + elements, dtype=torch.bfloat16, device=device))
            x = taken[-1][at:]
            x.copy_(timing.zero_sum(context.rank, context.world, elements, x.dtype, device))
            comm = communicators.enter_context(Communicator(device=device))
            assert comm.decision.backend == "native", comm.decision.reason
            us = _measure(context, comm, x)
            if context.rank == 0:
                store.set(f"{options['build']} {turn} us", str(us))


def _measure(context: Context, comm: Communicator, x: torch.Tensor) -> float:
    sampler = timing._eager_cpu if context.gpu is None else timing._graph
    sample = sampler(Ours(comm, "one_shot"), x, _CALLS)
    sample()
    times = timing.slowest([sample() / _CALLS for _ in range(_REPLAYS)])
    comm.check()
    assert not x.any(), "wrong sums"
    return statistics.median(times)


def start(build: str, path: Path, port: int, job: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A process of its own that launches the ranks of one build."""
    code = (
        "import json, sys; job = json.loads(sys.argv[1]); sys.path[:0] = job['path'];"
        "from pyallreduce.launch import Placement, launch;"
        "launch('safety_cost:run_rank', job, Placement(job['ranks'], job['gpus']), deadline_s=300)"
    )
    paths = [str(path), str(ROOT / "bench")]
    text = json.dumps({**job, "build": build, "port": port, "path": paths})
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen([sys.executable, "-c", code, text], env=environ)


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--ranks", type=click.IntRange(2, 8))
@click.option("--bytes", "nbytes", default=1024)
@click.option("--turns", default=24)
@click.option("--bare", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--build-only", is_flag=True)
def main(
    output: Path, ranks: int | None, nbytes: int, turns: int, bare: Path, build_only: bool
) -> None:
    build(bare, PATCHES)
    if build_only:
        return
    gpus = gpu_count()
    job = {"ranks": ranks or gpus or 2, "gpus": gpus, "bytes": nbytes, "turns": turns}
    times = alternate({"safe": ROOT, "bare": bare}, job)
    mean, half = difference(times["safe"], times["bare"])
    result = {
        "bytes": nbytes,
        "world": job["ranks"],
        "turns": turns,
        "safe_us": round(statistics.median(times["safe"]), 3),
        "bare_us": round(statistics.median(times["bare"]), 3),
        "cost_us": round(mean, 4),
        "cost_us_95": [round(mean - half, 4), round(mean + half, 4)],
    }
    head = header(f"bench/safety_cost.py --ranks {job['ranks']} --bytes {nbytes} --turns {turns}")
    content = {"header": head, **result, "times_us": times}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(result))


def alternate(builds: dict[str, Path], job: dict[str, Any]) -> dict[str, list[float]]:
    """µs of a call by build, a median for each turn; who begins a turn alternates as well."""
    c10d: Any = dist
    store = c10d.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [start(name, path, store.port, job) for name, path in builds.items()]
    times: dict[str, list[float]] = {name: [] for name in builds}
    try:
        for turn in range(job["turns"]):
            for name in builds if turn % 2 == 0 else reversed(builds):
                store.set(f"{name} {turn}", "go")
                times[name].append(_answer(store, f"{name} {turn} us", processes))
    finally:
        for process in processes:
            process.terminate()
            process.wait(20)
    return times


def _answer(store: Any, key: str, processes: Sequence[subprocess.Popen[bytes]]) -> float:
    """What the build whose turn it is says.

    Raises:
        ChildProcessError: a build has failed instead; its own output says why.
        TimeoutError: it said nothing within a minute, start-up included.
    """
    deadline = time.monotonic() + _ANSWER_S
    while not store.check([key]):
        if any(process.poll() not in (None, 0) for process in processes):
            message = f"a build failed before {key!r} was answered"
            raise ChildProcessError(message)
        if time.monotonic() > deadline:
            message = f"no answer to {key!r} within {_ANSWER_S} s"
            raise TimeoutError(message)
        time.sleep(0.01)
    return float(store.get(key))


if __name__ == "__main__":
    main()
