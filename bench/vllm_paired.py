# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Decode steps of vLLM by who carries the all-reduces, in turn within one start (`vllm_gpu.py`).

Each arm has graphs of its own, captured with its all-reduce in vLLM's slot (`vllm_gpu_worker.py`):

* `ours`: the plugin as users get it;
* `unchecked`: the same graphs without what the plugin does around each step, its wrappers of vLLM's
  methods included, so that the difference is that;
* `stock`: vLLM's own custom all-reduce, and `nccl`: none, both as `unchecked` otherwise.

`step_parts` has, of each rank, how often our parts of a step were called in one generation, and us.

Processes, their places on the cores and the engine's state are the same for all, which the starts
of an engine are not.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from differences import difference
from vllm_gpu import HIDDEN, LONG, SHARED, SHORT, digest, engine, generate, tell

ARMS = ("ours", "unchecked", "stock", "nccl")
_SEED = 5


def measure_paired(job: dict[str, Any]) -> None:
    """One start: a RESULT line for each batch."""
    llm = engine(job)
    for arm in ARMS:
        llm.collective_rpc("add_arm", args=(arm,))
    order = random.Random(_SEED)
    for batch in job["batches"]:
        steps: dict[str, list[float]] = {arm: [] for arm in ARMS}
        tokens: dict[str, set[str]] = {arm: set() for arm in ARMS}
        for _ in range(job["paired"]):
            for arm in order.sample(ARMS, len(ARMS)):
                llm.collective_rpc("use_arm", args=(arm,))
                short, long = generate(llm, batch, SHORT), generate(llm, batch, LONG)
                steps[arm].append(round((long[0] - short[0]) / (LONG - SHORT) * 1e3, 4))
                tokens[arm].add(digest(long[1]))
        llm.collective_rpc("use_arm", args=("ours",))
        llm.collective_rpc("clock_steps")
        generate(llm, batch, LONG)
        parts = llm.collective_rpc("step_parts")
        found = {arm: sorted(seen) for arm, seen in tokens.items()}
        shared = {name: job[name] for name in SHARED if name != "backend"}
        tell(batch, **shared, hidden=HIDDEN, steps_ms=steps, tokens=found, step_parts=parts)


def table(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Medians, and how much longer a step takes with each arm than with ours, turn by turn."""
    yield "batch arm        step ms   more than ours, us   tokens"
    for record in records:
        ours = record["steps_ms"]["ours"]
        for arm, steps in record["steps_ms"].items():
            mean, half = difference(steps, ours)
            more = "" if arm == "ours" else f"{mean * 1e3:+8.0f} +- {half * 1e3:.0f}"
            words = " ".join(record["tokens"][arm])
            median = statistics.median(steps)
            yield f"{record['batch']:>5} {arm:9} {median:>8.4f}   {more:18}   {words}"
        yield f"      our parts of a step by rank, (calls, us): {record['step_parts']}"
