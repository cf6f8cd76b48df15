# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Records of a comparison that never ran."""

from __future__ import annotations

import dataclasses
from typing import Any

from pyallreduce.bench import goals
from pyallreduce.bench.compare import Plan
from pyallreduce.bench.floor import floor_us
from pyallreduce.bench.peers import registry
from pyallreduce.bench.report import Record

__all__ = ["KIB", "MIB", "PLAN", "field", "record", "verdict"]

KIB, MIB = 1 << 10, 1 << 20
PLAN = Plan(("bfloat16",), ("eager",), (1024, 4096), 3, 1, 0.3, 60.0, 600.0)


def record(backend: str, algorithm: str, us: float, **changes: Any) -> Record:
    base = Record(
        backend=backend,
        algorithm=algorithm,
        world=2,
        dtype="bfloat16",
        mode="graph",
        bytes=KIB,
        us=us,
        us_p99=us,
        verified=True,
        algbw=0.0,
        busbw=0.0,
        wrong=0,
        carrier="",
        calls=200,
        samples=200,
        blocks=1,
    )
    record = dataclasses.replace(base, **changes)
    floor = floor_us(record.bytes, record.world)
    return dataclasses.replace(record, floor=changes.get("floor", floor))


def field(ours: float, nbytes: int = KIB, world: int = 2, **slower: float) -> list[Record]:
    """Ours and every peer at its time of before, some of them `slower` by a factor."""
    rows = [record("pyallreduce", "auto", ours, bytes=nbytes, world=world)]
    for entry in registry.ENTRIES:
        for algorithm in entry.algorithms:
            us = goals.reference_us((entry.name, algorithm), nbytes, world)
            factor = slower.get(f"{entry.name}_{algorithm}", 1.0)
            if us is not None and factor:
                row = record(entry.name, algorithm, us * factor, bytes=nbytes, world=world)
                rows.append(row)
    return rows


def verdict(records: list[Record]) -> str:
    (cell,) = goals.cells(records)
    return cell.verdict
