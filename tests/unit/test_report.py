# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How `bench` shows and keeps its results, and how it chooses what to measure."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pyallreduce.bench import command, report
from pyallreduce.bench.options import Mode, Options, parse_size
from pyallreduce.bench.timing import SPIN_CYCLES, quantile, spin_for, zero_sum
from pyallreduce.check.cases import DTYPES

KEYS = ["backend", "algorithm", "world", "dtype", "mode", "bytes", "us", "us_p99", "verified"]


def record(**changes: Any) -> report.Record:
    base = report.Record(
        backend="pyallreduce",
        algorithm="auto",
        world=4,
        dtype="bfloat16",
        mode="graph",
        bytes=1 << 20,
        us=10.0,
        us_p99=12.0,
        verified=True,
        algbw=104.858,
        busbw=157.286,
        wrong=0,
        carrier="two_shot",
        calls=200,
        samples=50,
    )
    return dataclasses.replace(base, **changes)


def options(**changes: Any) -> Options:
    base = Options(
        min_bytes=1024,
        max_bytes=4096,
        factor=2,
        dtypes=("bfloat16",),
        modes=("graph",),
        backends=(),
        calls=None,
        warmup=5,
        samples=50,
        check=True,
    )
    return dataclasses.replace(base, **changes)


def test_heading_is_that_of_nccl_tests() -> None:
    _, columns, units = report.heading(["nccl"])
    assert " ".join(columns.split()) == "# size count type redop root time algbw busbw #wrong"
    assert " ".join(units.split()) == "# (B) (elements) (us) (GB/s) (GB/s)"


def test_columns_stand_under_their_headings() -> None:
    names, columns, units = report.heading(["pyallreduce auto", "nccl"])
    line = report.row(1 << 20, 1 << 19, "bfloat16", [record(), record(backend="nccl")])
    assert line.split() == [
        *("1048576", "524288", "bfloat16", "sum", "-1"),
        *("10.00", "104.86", "157.29", "0") * 2,
    ]
    for word in ("size", "count", "type", "redop", "root", "#wrong"):
        end = columns.index(word) + len(word)
        assert line[end - 1] != " ", word
        assert line[end : end + 1] in ("", " "), word
    assert len(columns) == len(line)
    assert names.index("nccl") > columns.index("#wrong")
    assert len(units) <= len(columns)


def test_row_with_a_backend_that_declines() -> None:
    line = report.row(1024, 256, "float32", [None, record(us=123.456, algbw=0.01, busbw=0.02)])
    assert line.split()[5:] == ["n/a", "123.5", "0.01", "0.02", "0"]
    assert len(line) == len(report.heading(["a", "b"])[1])


def test_unverified_is_not_called_right() -> None:
    assert report.row(1024, 256, "float32", [record(verified=False)]).endswith("   N/A")
    assert report.row(1024, 256, "float32", [record(verified=False, wrong=7)]).endswith("     7")


@pytest.mark.parametrize(
    ("us", "text"), [(9.876, "9.88"), (123.456, "123.5"), (9999.9, "9999.9"), (12345.6, "12346")]
)
def test_time_is_written_as_in_nccl_tests(us: float, text: str) -> None:
    assert report.row(8, 2, "float32", [record(us=us)]).split()[5] == text


@pytest.mark.parametrize(("world", "factor"), [(2, 1.0), (3, 4 / 3), (4, 1.5), (8, 1.75)])
def test_bus_bandwidth(world: int, factor: float) -> None:
    nbytes, us = 250_000_000, 1000.0
    assert report.algorithm_bandwidth(nbytes, us) == pytest.approx(250.0)
    assert report.bus_bandwidth(nbytes, us, world) == pytest.approx(250.0 * factor)


def test_footer() -> None:
    slow = record(backend="nccl", algorithm="default", busbw=50.0)
    lines = report.footer([record(busbw=100.0), record(busbw=200.0), slow])
    assert lines[0] == "# Out of bounds values : 0 OK"
    assert lines[1:] == [
        "# Avg bus bandwidth    : 150  (pyallreduce auto)",
        "# Avg bus bandwidth    : 50  (nccl)",
    ]
    assert report.footer([record(wrong=3)])[0] == "# Out of bounds values : 3 FAILED"


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "results" / "bench.json"
    header = {"machine": {}, "gpu": [], "versions": {}, "commit": "unknown", "command": "bench"}
    report.write_json(path, header, [record()])
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["header"] == header
    assert set(KEYS) | {"algbw", "busbw"} <= set(content["records"][0])


@pytest.mark.parametrize(
    ("text", "nbytes"), [("8", 8), ("1K", 1024), ("32m", 32 << 20), ("1G", 1 << 30), ("2KiB", 2048)]
)
def test_sizes_are_read_as_in_nccl_tests(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5K", "1T", "eight"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected bytes"):
        parse_size(text)


def test_sweep() -> None:
    assert list(options().sizes(2)) == [1024, 2048, 4096]
    assert list(options(min_bytes=10, max_bytes=100, factor=3).sizes(4)) == [8, 28, 88]
    assert options(calls=7).calls_of(8, "eager", torch.device("cpu")) == 7


@pytest.mark.parametrize(
    ("device", "mode", "small", "large"),
    [
        ("cuda", "graph", 200, 50),
        ("cuda", "graph-cold", 200, 50),
        ("cuda", "graph-chain", 100, 25),
        ("cuda", "eager", 200, 50),  # as in a graph: the first launch is one of many
        ("cpu", "eager", 5, 1),
    ],
)
def test_calls_in_a_sample(device: str, mode: Mode, small: int, large: int) -> None:
    assert options().calls_of(1 << 20, mode, torch.device(device)) == small
    assert options().calls_of(2 << 20, mode, torch.device(device)) == large


def test_options_survive_the_way_to_the_ranks() -> None:
    sent = json.loads(json.dumps(dataclasses.asdict(options(backends=("auto", "nccl")))))
    assert Options.from_json(sent) == options(backends=("auto", "nccl"))


def test_a_spin_outlasts_queueing() -> None:
    assert spin_for(0.0001, SPIN_CYCLES) == SPIN_CYCLES  # the shortest
    assert spin_for(0.002, SPIN_CYCLES) == 6_000_000  # 3 ms at 2 GHz
    assert spin_for(60.0, SPIN_CYCLES) == 20 * SPIN_CYCLES


def test_quantile() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert quantile([float(i) for i in range(1, 101)], 0.99) == 99.0
    assert quantile([5.0], 0.99) == 5.0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("world", range(2, 9))
def test_what_is_timed_stays_zero(world: int, dtype: torch.dtype) -> None:
    inputs = [zero_sum(rank, world, 1000, dtype, torch.device("cpu")) for rank in range(world)]
    assert all(bool(x.all()) for x in inputs)
    for order in (inputs, inputs[::-1], inputs[::2] + inputs[1::2]):
        total = torch.zeros(1000, dtype=dtype)
        for x in order:
            total = total + x
        assert not bool(total.any())


@pytest.mark.parametrize("chosen", [None, "1"])
def test_nccl_graphs_are_as_fast_as_they_can_be_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    name = "NCCL_GRAPH_MIXING_SUPPORT"
    monkeypatch.setenv(name, chosen or "")
    if chosen is None:
        monkeypatch.delenv(name)
    command.without_graph_mixing()
    assert command.environment()[name] == (chosen or "0")
