# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Join the ranks' answers into one table and one verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

__all__ = ["Line", "Verdict", "edge_matrix", "join", "table"]

_HEADINGS = ("algorithm", "dtype", "mode", "cases", "wrong")


@dataclass(frozen=True)
class Line:
    """One line of the table: `wrong` counts cases that failed on any rank or differ between
    ranks."""

    algorithm: str
    dtype: str
    mode: str
    cases: int
    wrong: int
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check."""

    lines: tuple[Line, ...]
    decision: dict[str, Any]
    where: str
    edges: tuple[dict[int, float], ...] = ()
    validation_ms: float = 0.0

    @property
    def cases(self) -> int:
        return sum(line.cases for line in self.lines)

    @property
    def wrong(self) -> int:
        return sum(line.wrong for line in self.lines)

    @property
    def passed(self) -> bool:
        return self.wrong == 0 and self.cases > 0

    def __str__(self) -> str:
        word = "PASS" if self.passed else "FAIL"
        backend = self.decision["backend"]
        if backend == "nccl" and self.decision["target"] == "host":
            backend = "gloo"
        counted = f"{self.cases} cases, {self.wrong} wrong, {self.where}"
        return f"{word}: {counted}; {backend}: {self.decision['reason']}"

    def as_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "cases": self.cases,
            "wrong": self.wrong,
            "where": self.where,
            "decision": self.decision,
            "validation_ms": round(self.validation_ms, 1),
            "edges_us": [
                {str(peer): round(us, 2) if isfinite(us) else None for peer, us in row.items()}
                for row in self.edges
            ],
            "lines": [asdict(line) for line in self.lines],
        }


def join(results: Sequence[dict[str, Any]], where: str) -> Verdict:
    """Make the verdict from what `rank.run_rank` returned on each rank, in rank order."""
    by_row = zip(*(result["rows"] for result in results), strict=True)
    lines = tuple(_line(rows) for rows in by_row)
    edges = tuple({int(peer): us for peer, us in result["edges"]} for result in results)
    slowest = max(float(result["validation_ms"]) for result in results)
    return Verdict(lines, results[0]["decision"], where, edges, slowest)


def edge_matrix(edges: Sequence[dict[int, float]]) -> list[str]:
    """The start-up's ping-pong: µs of one round, from each rank (row), which says so, to each other
    one."""
    if not any(edges):
        return []
    ranks = range(len(edges))
    rows = [["", *(f"rank {peer}" for peer in ranks)]]
    for rank in ranks:
        rows.append([f"rank {rank}", *(_edge(edges[rank].get(peer)) for peer in ranks)])
    width = max(len(cell) for row in rows for cell in row)
    return ["  ".join(cell.rjust(width) for cell in row) for row in rows]


def _edge(us: float | None) -> str:
    if us is None:
        return "-"
    return f"{us:.2f}" if isfinite(us) else "broken"


def table(lines: Sequence[Line], *, verbose: bool) -> list[str]:
    """The table as text; what is wrong follows its line, without `verbose` the first of it
    alone."""
    cells = [
        _HEADINGS,
        *((x.algorithm, x.dtype, x.mode, str(x.cases), str(x.wrong)) for x in lines),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADINGS))]
    text: list[str] = []
    for number, row in enumerate(cells):
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False))
        right = "  ".join(
            cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)
        )
        text.append(f"{left}  {right}")
        line = lines[number - 1] if number else None
        if line is not None:
            text.extend(f"    {fault}" for fault in line.faults[: None if verbose else 1])
    return text


def _line(rows: Sequence[dict[str, Any]]) -> Line:
    checksums = list(zip(*(row["checksums"] for row in rows), strict=True))
    differ = {case for case, sums in enumerate(checksums) if len(set(sums)) > 1}
    wrong = differ.union(*(row["wrong"] for row in rows))
    faults = [f"rank {rank}: {fault}" for rank, row in enumerate(rows) for fault in row["faults"]]
    if differ:
        faults.append(f"the ranks hold different bits in {len(differ)} case(s)")
    first = rows[0]
    return Line(
        first["algorithm"], first["dtype"], first["mode"], len(checksums), len(wrong), tuple(faults)
    )
