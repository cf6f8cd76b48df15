# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How results are shown and kept: nccl-tests' columns, one group of them a backend, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Record",
    "algorithm_bandwidth",
    "bus_bandwidth",
    "footer",
    "heading",
    "row",
    "write_json",
]

_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat16"}
_NO_ROOT = -1
_GROUP = 32  # characters of one backend's columns
_DECLINED = "n/a"


@dataclass(frozen=True)
class Record:
    """One cell.

    `us` and `us_p99` are of one call: median and 99th percentile of the slowest rank; bandwidths
    are GB/s (10^9) by nccl-tests' definitions. `verified`: compared with the reference before it
    was timed, and `wrong` elements found on all ranks, then and after. `carrier` is what the
    backend chose for this size, `calls` how many calls make a sample. `floor` is the least time
    that links like an H100's allow (`floor.py`), `blocks` the SMs in use. `host_us`: the host's
    time of an eager call; `chain_us`: a call with its neighbours in graph-chain.
    """

    backend: str
    algorithm: str
    world: int
    dtype: str
    mode: str
    bytes: int
    us: float
    us_p99: float
    verified: bool
    algbw: float
    busbw: float
    wrong: int
    carrier: str
    calls: int
    samples: int
    floor: float | None = None
    blocks: int | None = None
    host_us: float | None = None
    chain_us: float | None = None

    @property
    def title(self) -> str:
        return self.backend if self.algorithm == "default" else f"{self.backend} {self.algorithm}"


def algorithm_bandwidth(nbytes: int, us: float) -> float:
    """Message bytes by time, GB/s."""
    return nbytes / us / 1e3 if us > 0 else 0.0


def bus_bandwidth(nbytes: int, us: float, world: int) -> float:
    """algbw * 2(n-1)/n, GB/s: what each link carries at least, comparable with its peak."""
    return algorithm_bandwidth(nbytes, us) * 2 * (world - 1) / world


def heading(titles: Sequence[str]) -> list[str]:
    """The three heading lines: backends, columns, units."""
    names = "".join(f"{title.center(_GROUP)}" for title in titles)
    columns = f"  {'time':>7}  {'algbw':>6}  {'busbw':>6} {'#wrong':>6}"
    units = f"  {'(us)':>7}  {'(GB/s)':>6}  {'(GB/s)':>6} {'':>6}"
    return [
        f"# {'':>10}  {'':>12}  {'':>8}  {'':>6}  {'':>6}{names}".rstrip(),
        f"# {'size':>10}  {'count':>12}  {'type':>8}  {'redop':>6}  {'root':>6}"
        + columns * len(titles),
        (
            f"# {'(B)':>10}  {'(elements)':>12}  {'':>8}  {'':>6}  {'':>6}" + units * len(titles)
        ).rstrip(),
    ]


def row(nbytes: int, count: int, dtype: str, cells: Sequence[Record | None]) -> str:
    """One size; None stands for a backend that declines it."""
    start = f"{nbytes:12d}  {count:12d}  {_TYPES[dtype]:>8}  {'sum':>6}  {_NO_ROOT:6d}"
    return start + "".join(_cell(cell) for cell in cells)


def footer(records: Sequence[Record]) -> list[str]:
    """nccl-tests' last lines, the bandwidth once a backend."""
    wrong = sum(record.wrong for record in records)
    text = [f"# Out of bounds values : {wrong} {'OK' if wrong == 0 else 'FAILED'}"]
    for title in dict.fromkeys(record.title for record in records):
        figures = [record.busbw for record in records if record.title == title]
        text.append(f"# Avg bus bandwidth    : {sum(figures) / len(figures):g}  ({title})")
    return text


def write_json(path: Path, header: dict[str, Any], records: Sequence[Record]) -> None:
    """Write {"header": ..., "records": [...]}."""
    content = {"header": header, "records": [asdict(record) for record in records]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _cell(record: Record | None) -> str:
    if record is None:
        return _DECLINED.rjust(_GROUP)
    wrong = str(record.wrong) if record.verified or record.wrong else "N/A"
    return f"  {_time(record.us):>7}  {record.algbw:6.2f}  {record.busbw:6.2f} {wrong:>6}"


def _time(us: float) -> str:
    if us >= 10_000:
        return f"{us:.0f}"
    return f"{us:.1f}" if us >= 100 else f"{us:.2f}"
