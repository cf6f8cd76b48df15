# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_tune.py run."""

from __future__ import annotations

from typing import Any

import torch

from pyallreduce import Communicator, Config
from pyallreduce.worker import Context

SMALL = {"slab_bytes": 4 << 20, "timeout_ms": 20_000, "exchange_timeout_ms": 30_000}


def dispatch(context: Context, options: dict[str, Any]) -> dict[str, Any]:
    """Sums of 1 KiB and 64 KiB, and who carried them; each rank has a tuning file of its own."""
    file = options["files"][context.rank]
    config = Config(**SMALL, tuning_file=file, batch_invariant=options.get("invariant", False))
    with Communicator(device="cpu", config=config) as comm:
        sizes = [1 << 10, 64 << 10]
        inputs = [torch.full((n // 4,), context.rank + 1.0) for n in sizes]
        total = context.world * (context.world + 1) / 2
        results = [comm.all_reduce(x) for x in inputs]
        stats = comm.stats()
        return {
            "right": all(bool((r == total).all()) for r in results),
            "plans": [comm.plan(n) for n in sizes],
            "accepts": [comm.accepts(x) for x in inputs],
            "one_order": comm.one_order,
            "table": list(comm.decision.table),
            "native": stats.calls,
            "fallbacks": stats.fallbacks,
            "forced": float(comm.all_reduce(inputs[1], algorithm="one_shot")[0]) == total,
        }
