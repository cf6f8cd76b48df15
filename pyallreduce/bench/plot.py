# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Plots of a comparison: latency, speed-up over the fastest peer, share of the floor.

Each as PNG and SVG beside the JSON file, one set for each mode and dtype in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyallreduce.bench.compare_report import columns_of, read_records
from pyallreduce.bench.floor import floor_us
from pyallreduce.bench.goals import cells
from pyallreduce.bench.report import Record

__all__ = ["draw"]

_SIZE = (8.0, 5.0)  # inches
_COLOURS = 10  # of matplotlib's default cycle
_FORMATS = ("png", "svg")
_OURS = "pyallreduce auto"
_KIB, _MIB = 1 << 10, 1 << 20
Axes = Any


def draw(path: Path) -> list[Path]:
    """Draw the comparison in `path`; the files written.

    Raises:
        ImportError: matplotlib is not installed (the extra `plot`).
        ValueError: `path` holds no comparison.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "pyallreduce"  # the same file for the same figures
    header, records = read_records(path)
    written: list[Path] = []
    for mode, dtype in dict.fromkeys((r.mode, r.dtype) for r in records):
        these = [r for r in records if (r.mode, r.dtype) == (mode, dtype) and r.verified]
        if not these:
            continue
        where = f"{header.get('ranks', '')}, {mode}, {dtype}"
        stem = f"{path.stem}-{mode}-{dtype}"
        plots: dict[str, Callable[[Axes, Sequence[Record]], None]] = {
            "latency": _latency,
            "speedup": _speedup,
            "floor": _share_of_floor,
        }
        for name, plot in plots.items():
            written += _figure(path.with_name(f"{stem}-{name}"), where, these, plot)
    return written


def _figure(
    stem: Path,
    where: str,
    records: Sequence[Record],
    plot: Callable[[Axes, Sequence[Record]], None],
) -> list[Path]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=_SIZE, layout="constrained")
    plot(axes, records)
    axes.set_title(where, fontsize="medium")
    axes.set_xscale("log", base=2)
    sizes = sorted({r.bytes for r in records})
    axes.set_xticks(sizes, [_size(n) for n in sizes], rotation=60, fontsize="small")
    axes.minorticks_off()
    axes.set_xlabel("message")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in _FORMATS]
    for file in files:
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, dpi=150, metadata=metadata)
    pyplot.close(figure)
    return files


def _latency(axes: Axes, records: Sequence[Record]) -> None:
    for title in columns_of(records):
        _line(axes, [r for r in records if r.title == title], title, lambda r: r.us)
    sizes = sorted({r.bytes for r in records})
    world = records[0].world
    floors = [floor_us(nbytes, world) for nbytes in sizes]
    axes.plot(sizes, floors, color="black", linestyle=":", label="floor")
    axes.set_yscale("log")
    axes.set_ylabel("µs of a call, median of the slowest rank")


def _speedup(axes: Axes, records: Sequence[Record]) -> None:
    judged = [cell for cell in cells(records) if math.isfinite(cell.ratio) and cell.ratio > 0]
    axes.plot([c.bytes for c in judged], [1 / c.ratio for c in judged], marker="o", label=_OURS)
    axes.axhline(1.0, color="black", linestyle=":", label="fastest peer")
    axes.set_ylabel("times as fast as the fastest peer")


def _share_of_floor(axes: Axes, records: Sequence[Record]) -> None:
    for title in columns_of(records):
        _line(
            axes,
            [r for r in records if r.title == title],
            title,
            lambda r: 100 * floor_us(r.bytes, r.world) / r.us,
        )
    axes.axhline(100.0, color="black", linestyle=":", label="floor")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("% of the floor")


def _line(
    axes: Axes, records: Sequence[Record], title: str, value: Callable[[Record], float]
) -> None:
    ours = title == _OURS
    points = [(r.bytes, value(r)) for r in records if r.us > 0]
    if points:
        sizes, values = zip(*points, strict=True)
        style = {"linewidth": 2.5, "zorder": 3} if ours else {"linewidth": 1.0}
        dash = "-" if len(axes.lines) < _COLOURS else "--"  # colours come round again
        axes.plot(sizes, values, dash, marker="o", markersize=3, label=title, **style)


def _size(nbytes: int) -> str:
    if nbytes >= _MIB:
        return f"{nbytes / _MIB:g} MiB"
    return f"{nbytes / _KIB:g} KiB" if nbytes >= _KIB else f"{nbytes} B"
