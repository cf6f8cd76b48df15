# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`bench --compare` without ranks: what a failure costs, how it is shown and kept."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from pyallreduce.bench import compare_report
from pyallreduce.bench.compare import Comparison, Failure, telling_line
from pyallreduce.bench.peers import registry
from pyallreduce.launch import LaunchError, Placement
from tests.unit.compared import MIB, PLAN, field, record

# ---- failures ------------------------------------------------------------------------------------

TRACE = """rank 1: Traceback (most recent call last):
  File "x.py", line 3, in run
    raise RuntimeError("the kernel failed: 7")
RuntimeError: the kernel failed: 7
rank 0: did not end in time"""


def test_the_telling_line() -> None:
    assert telling_line(TRACE) == "RuntimeError: the kernel failed: 7"
    assert telling_line("rank 0, 1: did not end in time") == "rank 0, 1: did not end in time"
    assert telling_line("") == "failed"


class Script:
    """Stands for `launch`: plays back what each set of ranks says, and how it ends."""

    def __init__(self, *sets: tuple[list[dict[str, Any]], str]) -> None:
        self.sets = list(sets)
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, _target: str, options: Any, _place: Any, **rest: Any) -> list[Any]:
        said, error = self.sets.pop(0)
        self.asked.append(tuple(options["algorithms"]))
        for report in said:
            rest["on_report"](0, report)
        if error:
            raise LaunchError(error)
        return []


def compared(monkeypatch: pytest.MonkeyPatch, script: Script, *names: str) -> Comparison:
    monkeypatch.setattr("pyallreduce.bench.compare.launch", script)
    comparison = Comparison(PLAN, Placement(2, 0), lambda _said: None)
    comparison.run(registry.choose(names, "cpu"), lambda: None)
    return comparison


def begin(algorithm: str, nbytes: int) -> dict[str, Any]:
    return {"begin": [algorithm, "bfloat16", "eager", nbytes]}


def test_the_rows_behind_a_failure_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = {"cell": dataclasses.asdict(record("pyallreduce", "auto", 1.0))}
    first = [begin("auto", 1024), cell, {"done": "auto"}, begin("one_shot", 4096)]
    script = Script((first, TRACE), ([{"done": "two_shot"}], ""))
    comparison = compared(monkeypatch, script, "pyallreduce")
    assert script.asked == [("auto", "one_shot", "two_shot"), ("two_shot",)]
    assert len(comparison.records) == 1
    (failure,) = comparison.failures
    assert (failure.backend, failure.algorithm) == ("pyallreduce", "one_shot")
    assert str(failure) == (
        "pyallreduce one_shot at eager, bfloat16, 4096 bytes: RuntimeError: the kernel failed: 7"
    )
    assert failure.error == TRACE


def test_processes_that_never_began_cost_one_row_each(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(([], "rank 0: cannot start"), ([], "again"), ([], "and again"), ([], ""))
    comparison = compared(monkeypatch, script, "pyallreduce", "gloo")
    assert [f.algorithm for f in comparison.failures] == ["auto", "one_shot", "two_shot"]
    assert script.asked[-1] == ("default",)


def test_a_bad_exit_behind_the_last_row_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(([begin("default", 1024), {"done": "default"}], "rank 0: exit code -11"))
    assert compared(monkeypatch, script, "gloo").failures == []


def test_no_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyallreduce.bench.compare.launch", Script())
    late = dataclasses.replace(PLAN, timeout_s=0.0)
    comparison = Comparison(late, Placement(2, 0), lambda _said: None)
    comparison.run(registry.choose(["gloo"], "cpu"), lambda: None)
    assert [f.error for f in comparison.failures] == ["no time was left for it"]


# ---- how it is shown and kept --------------------------------------------------------------------


def test_table() -> None:
    lines = compare_report.tables(field(1.80))
    heading, row = lines[-2:]
    assert heading.split()[:4] == ["#", "bytes", "ours", "nccl"]
    assert row.split()[:3] == ["1024", "1.80", "11.00"]
    assert row.split()[-4:] == ["0.90", "1.10", "1", "won"]


def test_table_marks_what_is_wrong_and_what_is_missing() -> None:
    rows = field(1.80)
    rows[1] = dataclasses.replace(rows[1], verified=False, wrong=3)
    rows += [dataclasses.replace(rows[0], bytes=2048)]
    lines = compare_report.tables(rows)
    assert "!11.00" in lines[-2]
    assert lines[-1].split()[1:3] == ["1.80", "-"]
    summary = compare_report.summary(rows, [Failure("sglang", "one_shot_push", "", "no nvcc")])
    assert summary[0] == "# missing: sglang one_shot_push: no nvcc"
    assert summary[1].startswith("# wrong result: nccl in 1 cells")
    assert summary[-1] == "# graph: won 0 of 2, 2 not counted"


def test_json_and_plots(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "compare.json"
    rows = field(1.80) + field(4.5, MIB) + [record("pyallreduce", "auto", 9.0, bytes=2 * MIB)]
    failures = [Failure("vllm", "default", "graph", "gone")]
    compare_report.write_json(path, {"ranks": "2 ranks"}, rows, failures)
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert "NaN" not in text
    assert content["cells"][0]["verdict"] == "won"
    assert content["failures"][0]["error"] == "gone"
    wanted = {"backend", "algorithm", "world", "dtype", "mode", "bytes", "us", "us_p99", "verified"}
    assert wanted <= set(content["records"][0])
    assert compare_report.read_records(path)[1] == rows
    pytest.importorskip("matplotlib")
    plot = importlib.import_module("pyallreduce.bench.plot")
    files = plot.draw(path)
    assert sorted(f.name for f in files) == sorted(
        f"compare-graph-bfloat16-{name}.{kind}"
        for name in ("latency", "speedup", "floor")
        for kind in ("png", "svg")
    )
    assert all(f.stat().st_size > 1000 for f in files)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"header": {}, "records": [{"us": 1}]}'])
def test_a_file_that_is_no_comparison_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="no comparison"):
        compare_report.read_records(path)
