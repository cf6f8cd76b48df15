# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How a comparison is shown and kept: a table for each mode and dtype, one column a row of it, and
JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyallreduce.bench.compare import Failure
from pyallreduce.bench.goals import Cell, cells, dtypes_apart, long_tails
from pyallreduce.bench.report import Record

__all__ = ["columns_of", "read_records", "summary", "tables", "write_json"]

# Of the columns: short enough for a terminal.
_SHORT = {
    "pyallreduce auto": "ours",
    "pyallreduce one_shot": "ours-1",
    "pyallreduce two_shot": "ours-2",
    "nccl_sym symmetric": "nccl-sym",
    "torch_symm one_shot": "symm-1",
    "torch_symm two_shot": "symm-2",
    "flashinfer one_shot": "fi-1",
    "sglang one_shot_push": "sgl-push",
    "sglang two_shot_pull": "sgl-pull",
}
_WIDTH = 8
_MISSING = "-"


def columns_of(records: Sequence[Record]) -> list[str]:
    """The titles of all rows, in the order of measuring."""
    return list(dict.fromkeys(record.title for record in records))


def tables(records: Sequence[Record]) -> list[str]:
    """Lines for people: us of a call, then ours beside the fastest peer and the floor."""
    titles = columns_of(records)
    verdicts = {(c.mode, c.dtype, c.bytes): c for c in cells(records)}
    lines: list[str] = []
    for mode, dtype in dict.fromkeys((r.mode, r.dtype) for r in records):
        found = {(r.bytes, r.title): r for r in records if (r.mode, r.dtype) == (mode, dtype)}
        host = mode == "eager" and any(r.host_us is not None for r in found.values())
        what = "us of a call on the host" if host else "us of a call"
        lines += ["#", f"# {mode}, {dtype}: {what}, median of the slowest rank", _heading(titles)]
        for nbytes in dict.fromkeys(size for size, _ in found):
            row = [found.get((nbytes, title)) for title in titles]
            cell = verdicts.get((mode, dtype, nbytes))
            lines.append(_row(nbytes, row, cell, host))
    return lines


def summary(records: Sequence[Record], failures: Sequence[Failure]) -> list[str]:
    """How many cells were won, and every row that is missing with its reason."""
    lines = [f"# missing: {failure}" for failure in failures]
    wrong = [r for r in records if not r.verified]
    for title in dict.fromkeys(r.title for r in wrong):
        these = [f"{r.mode} {r.dtype} {r.bytes}" for r in wrong if r.title == title]
        lines.append(f"# wrong result: {title} in {len(these)} cells, first {these[0]}")
    for what, found in (
        ("p99 above 1.3 x median below 1M", long_tails(records)),
        ("more than 3 % slower than bfloat16", dtypes_apart(records)),
    ):
        if found:
            sizes = ", ".join(f"{r.dtype} {r.bytes}" for r in found)
            lines.append(f"# ours, {what}: {sizes}")
    judged = cells(records)
    for mode in dict.fromkeys(c.mode for c in judged):
        of_mode = [c for c in judged if c.mode == mode]
        uncounted = sum(c.verdict.startswith("not counted") for c in of_mode)
        won = sum(c.won for c in of_mode)
        lines.append(f"# {mode}: won {won} of {len(of_mode)}, {uncounted} not counted")
    return lines


def write_json(
    path: Path, header: dict[str, Any], records: Sequence[Record], failures: Sequence[Failure]
) -> None:
    """Write {"header", "records", "failures", "cells"}; what is no number becomes null."""
    content = {
        "header": header,
        "records": [asdict(record) for record in records],
        "failures": [asdict(failure) for failure in failures],
        "cells": [_plain(asdict(cell)) for cell in cells(records)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_records(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """The header and the records of a file that `write_json` wrote.

    Raises:
        ValueError: it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["header"], [Record(**record) for record in content["records"]]
    except (KeyError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, ValueError) else "`bench --compare` writes other keys"
        raise ValueError(f"{path} holds no comparison: {why}") from error


def _heading(titles: Sequence[str]) -> str:
    names = "".join(f"{_SHORT.get(title, title)[:_WIDTH]:>{_WIDTH + 1}}" for title in titles)
    return f"# {'bytes':>10}{names}  {'/peer':>5} {'/floor':>6} {'SMs':>4}  verdict"


def _row(nbytes: int, row: Sequence[Record | None], cell: Cell | None, host: bool) -> str:
    times = "".join(f"{_time(record, host):>{_WIDTH + 1}}" for record in row)
    line = f"{nbytes:12d}{times}"
    if cell is None:
        return line
    ratio = _MISSING if math.isnan(cell.ratio) else f"{cell.ratio:.2f}"
    blocks = _MISSING if cell.blocks is None else str(cell.blocks)
    floor = _MISSING if math.isnan(cell.of_floor) else f"{cell.of_floor:.2f}"
    return f"{line}  {ratio:>5} {floor:>6} {blocks:>4}  {cell.verdict}"


def _time(record: Record | None, host: bool) -> str:
    us = None if record is None else record.host_us if host else record.us
    if record is None or us is None:
        return _MISSING
    text = f"{us:.0f}" if us >= 1000 else f"{us:.1f}" if us >= 100 else f"{us:.2f}"
    return text if record.verified else f"!{text}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
