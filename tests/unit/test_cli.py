# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The command line on any machine: `info`, refusals, and the words of `check`'s verdict."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pyallreduce import _native, info
from pyallreduce.check.report import Verdict, edge_matrix, join, table
from pyallreduce.cli import main
from pyallreduce.facts import PROTOCOL_VERSION
from pyallreduce.launch import LaunchError, Placement, place
from pyallreduce.topology import Matrix


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environ)


@pytest.mark.parametrize(
    ("command", "option"), [("check", "--json"), ("bench", "--json"), ("tune", "--output")]
)
@pytest.mark.parametrize(
    ("path", "told"), [("/nowhere/result.json", "there is no folder"), ("/proc/result", "written")]
)
def test_a_result_file_that_could_not_be_written_is_told_before_anything_starts(
    command: str, option: str, path: str, told: str
) -> None:
    result = run(command, option, path)
    assert result.exit_code == 2
    assert told in result.output


def test_a_result_file_is_not_made_before_there_is_a_result(tmp_path: Path) -> None:
    result = run("check", "--json", str(tmp_path / "result.json"), "--ranks", "1")
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["check", "tune"])
def test_what_starts_its_own_ranks_refuses_torchruns(command: str) -> None:
    result = run(command, RANK="0", WORLD_SIZE="2")
    assert result.exit_code == 2
    assert "without torchrun" in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-b", "8K", "-e", "1K"), "no size from 8192"),
        (("--backends", "nccl"), "stand with --compare"),
        (("--modes", "eager"), "stand with --compare"),
        (("--backend", "nccl"), "does not carry"),
        (("--compare", "--backends", "nccl"), "none of these serves"),
    ],
)
def test_bench_refuses_what_it_would_measure_nothing_for(
    arguments: tuple[str, ...], told: str
) -> None:
    result = run("bench", "--ranks", "2", "--device", "cpu", *arguments)
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_info_as_text() -> None:
    result = run("info")
    assert result.exit_code == 0, result.output
    for words in (
        "torch",
        "python",
        "native module",
        "4 ranks on the CPU: native",
        "remedy",
        "Slab",
    ):
        assert words in result.output


def test_info_as_json() -> None:
    result = run("info", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert set(found) == {field.name for field in dataclasses.fields(info.Info)}
    assert found["versions"]["torch"]
    assert found["groups"][-1]["code"] == "OK"
    assert [budget["world"] for budget in found["budgets"]] == [2, 3, 4, 8]
    for budget in found["budgets"]:
        assert sum(size for _, size in budget["regions"]) <= budget["total"] <= 64 << 20


@pytest.mark.parametrize(
    ("status", "code"), [("missing", "MODULE_MISSING"), ("broken", "MODULE_BROKEN")]
)
def test_info_without_the_module(monkeypatch: pytest.MonkeyPatch, status: Any, code: str) -> None:
    def fail() -> None:
        raise ImportError("libnothing.so.1: cannot open shared object file")

    monkeypatch.setattr(_native, "state", lambda: _native.NativeState(status, "libnothing.so.1"))
    monkeypatch.setattr(_native, "load", fail)
    text = run("info")
    assert text.exit_code == 0, text.output
    assert code in text.output
    assert "libnothing.so.1" in text.output
    found = json.loads(run("info", "--json").output)
    assert found["groups"][-1]["code"] == code
    assert found["budgets"] == []


def test_a_checkout_that_hides_an_installed_package_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`python -m` and torchrun put the folder that they start in first."""
    checkout, installed = tmp_path / "checkout", tmp_path / "site" / "pyallreduce"
    installed.mkdir(parents=True)
    (tmp_path / "site" / "pyallreduce-0.1.0.dist-info").mkdir()
    (tmp_path / "site" / "pyallreduce-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pyallreduce\nVersion: 0.1.0\n"
    )
    monkeypatch.setattr(_native, "__file__", str(checkout / "pyallreduce" / "_native.py"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    state = _native.state.__wrapped__
    assert str(installed) not in state().detail, "there is no module in it"
    (installed / "_C.cpython-311-x86_64-linux-gnu.so").touch()
    assert state().status == "missing"
    assert f"in {checkout / 'pyallreduce'}, which hides" in state().detail
    assert str(installed) in state().detail


def test_a_module_of_another_protocol_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(PROTOCOL_VERSION=PROTOCOL_VERSION - 1)
    monkeypatch.setattr(_native, "load", lambda: module)
    state = _native.state.__wrapped__()
    assert state.status == "broken"
    assert "build it again" in state.detail


def test_info_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("the driver is broken")

    monkeypatch.setattr(info, "gpu_count", fail)
    monkeypatch.setattr(info, "probe", fail)
    monkeypatch.setattr(info, "_driver", fail)
    monkeypatch.setattr(info, "matrix", lambda: Matrix(error="NVML: driver not loaded"))
    result = run("info")
    assert result.exit_code == 0, result.output
    assert "Not answered: GPUs: the driver is broken" in result.output
    assert "NVML: driver not loaded" in result.output


def test_info_shows_the_gpus_and_both_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Matrix(("GPU-a", "GPU-b"), ("H100", "H100"), (("X", "NV18"), ("NV18", "X")))
    monkeypatch.setattr(info, "gpu_count", lambda: 2)
    monkeypatch.setattr(info, "matrix", lambda: shown)
    result = run("info")
    assert result.exit_code == 0, result.output
    assert "GPU1  NV18  X" in result.output
    # There is no driver for these two: `decide` says so, on facts that were really probed.
    assert "2 ranks, one a GPU: " in result.output
    assert "4 ranks on the CPU: native" in result.output


def test_info_tells_a_setting_that_is_refused() -> None:
    result = run("info", PYALLREDUCE_BACKEND="ncll")
    assert result.exit_code == 0, result.output
    assert "Settings refused, and with them every start: PYALLREDUCE_BACK" in result.output
    assert "remedy" not in result.output, "a verdict on a start that is not to be had"


def test_info_tells_a_slab_that_is_too_small() -> None:
    result = run("info", PYALLREDUCE_SLAB_BYTES="64K")
    assert "4 ranks on the CPU: gloo" in result.output
    assert "reason  SLAB_SIZE: " in result.output
    assert "at least " in result.output


def test_info_follows_the_settings() -> None:
    result = run("info", PYALLREDUCE_BACKEND="nccl")
    assert "4 ranks on the CPU: gloo" in result.output
    assert "FORCED_NCCL" in result.output


@pytest.mark.parametrize("command", ["check", "bench", "tune"])
def test_an_unknown_setting_is_refused_without_a_traceback(command: str) -> None:
    result = run(command, PYALLREDUCE_BAKEND="nccl")
    assert result.exit_code == 1
    assert "did you mean PYALLREDUCE_BACKEND?" in result.output
    assert "Traceback" not in result.output


def test_bench_refuses_what_it_does_not_know() -> None:
    assert run("bench", "-b", "1T").exit_code == 2
    assert run("bench", "-d", "int8").exit_code == 2
    graphs = run("bench", "--device", "cpu", "-G", "10")
    assert graphs.exit_code == 2
    assert "CUDA graphs need GPUs" in graphs.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--modes", "graph"), "CUDA graphs need GPUs"),
        (("--modes", "warm"), "expected modes of graph, graph-cold"),
        (("--backends", "ncl"), "expected one of pyallreduce, nccl"),
    ],
)
def test_compare_refuses_what_it_does_not_know(arguments: tuple[str, str], words: str) -> None:
    result = run("bench", "--compare", "--device", "cpu", *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_plot_refuses_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}", encoding="utf-8")
    result = run("bench", "--plot", str(path))
    assert result.exit_code == 1
    assert "holds no comparison" in result.output


@pytest.mark.parametrize(
    ("arguments", "environ", "told"),
    [
        (("-b", "1M", "-e", "1K"), {}, "no size from 1048576"),
        ((), {"PYALLREDUCE_TUNING_FILE": "/tmp"}, "is a folder"),
    ],
)
def test_tune_refuses_what_it_could_not_do(
    arguments: tuple[str, ...], environ: dict[str, str], told: str
) -> None:
    result = run("tune", *arguments, **environ)
    assert result.exit_code == 2
    assert told in result.output


def test_tune_needs_a_place_for_the_table() -> None:
    result = run("tune", "--device", "cpu", PYALLREDUCE_TUNING_FILE="off")
    assert result.exit_code == 2
    assert "use --output" in result.output


def test_version() -> None:
    assert run("--version").exit_code == 0


@pytest.mark.parametrize(
    ("ranks", "device", "gpus", "share", "expected"),
    [
        (None, "auto", 0, False, Placement(4, 0)),
        (None, "auto", 1, False, Placement(4, 0)),
        (None, "auto", 4, False, Placement(4, 4)),
        (None, "auto", 16, False, Placement(8, 16)),
        (None, "auto", 1, True, Placement(2, 1)),
        (3, "auto", 1, True, Placement(3, 1)),
        (2, "auto", 4, False, Placement(2, 4)),
        (2, "cpu", 4, False, Placement(2, 0)),
    ],
)
def test_place(ranks: int | None, device: Any, gpus: int, share: bool, expected: Placement) -> None:
    assert place(ranks, device, gpus=gpus, share_gpu=share) == expected


@pytest.mark.parametrize(
    ("ranks", "device", "gpus", "words"),
    [(1, "auto", 0, "2 to 8"), (4, "auto", 2, "--ranks 2"), (None, "cuda", 1, "shows 1")],
)
def test_place_refuses(ranks: int | None, device: Any, gpus: int, words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        place(ranks, device, gpus=gpus, share_gpu=False)


def test_the_group_of_ranks_that_share_a_gpu_has_no_nccl() -> None:
    assert Placement(2, 1).backend == "gloo"
    assert Placement(2, 2).backend == "cpu:gloo,cuda:nccl"


def answer(checksums: list[int], wrong: list[int], faults: list[str]) -> dict[str, Any]:
    row = {"algorithm": "one_shot", "dtype": "float32", "mode": "eager"}
    rows = [{**row, "checksums": checksums, "wrong": wrong, "faults": faults}]
    decision = {"backend": "native", "target": "host", "code": "OK", "reason": "OK.", "table": []}
    return {"decision": decision, "rows": rows, "edges": [], "validation_ms": 1.0}


def test_verdict_of_equal_and_right_answers() -> None:
    verdict = join([answer([1, 2, 3], [], [])] * 2, "2 ranks on the CPU")
    assert verdict.passed
    assert str(verdict) == "PASS: 3 cases, 0 wrong, 2 ranks on the CPU; native: OK."
    assert table(verdict.lines, verbose=False)[1].split() == [
        "one_shot",
        "float32",
        "eager",
        "3",
        "0",
    ]


def test_verdict_fails_for_one_wrong_result_on_one_rank() -> None:
    verdict = join([answer([1, 2], [], []), answer([1, 2], [1], ["case b: no"])], "here")
    assert (verdict.passed, verdict.wrong) == (False, 1)
    assert str(verdict).startswith("FAIL: 2 cases, 1 wrong")
    assert "rank 1: case b: no" in table(verdict.lines, verbose=False)[2]


def test_verdict_fails_where_ranks_differ_though_each_seems_right() -> None:
    verdict = join([answer([1, 2], [], []), answer([1, 9], [], [])], "here")
    assert (verdict.passed, verdict.wrong) == (False, 1)
    assert "different bits in 1 case" in table(verdict.lines, verbose=True)[2]


def test_verdict_of_nothing_is_no_pass() -> None:
    assert not join([answer([], [], [])] * 2, "here").passed


def test_an_edge_that_is_not_sound_is_told() -> None:
    edges = ({1: 2.5}, {0: math.inf})
    assert [line.split() for line in edge_matrix(edges)] == [
        ["rank", "0", "rank", "1"],
        ["rank", "0", "-", "2.50"],
        ["rank", "1", "broken", "-"],
    ]
    verdict = Verdict((), {}, "here", edges)
    assert verdict.as_json()["edges_us"] == [{"1": 2.5}, {"0": None}]
