# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`bench --compare` without ranks: who takes part, what a cell is worth, how it is shown."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pyallreduce.bench import compare_report, goals, modes
from pyallreduce.bench.compare import Comparison, Failure, Plan, telling_line
from pyallreduce.bench.compare_job import Job
from pyallreduce.bench.floor import algorithm_floor_us, floor_us
from pyallreduce.bench.options import MODES, parse_modes
from pyallreduce.bench.peers import registry
from pyallreduce.bench.peers.base import Arena, Peer, PingPong, Place
from pyallreduce.bench.report import Record
from pyallreduce.launch import LaunchError, Placement

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


# ---- figures -------------------------------------------------------------------------------------


def test_floor_is_that_of_the_measurements() -> None:
    assert algorithm_floor_us(0, 2, "one_shot") == pytest.approx(1.64)
    assert algorithm_floor_us(0, 4, "two_shot") == pytest.approx(2.48)
    assert floor_us(256 * MIB, 2) == pytest.approx(737, abs=1)
    assert floor_us(256 * MIB, 4) == pytest.approx(1106, abs=2)
    assert floor_us(MIB, 4) == algorithm_floor_us(MIB, 4, "two_shot")


@pytest.mark.parametrize(
    ("nbytes", "world", "of_peer", "of_floor"),
    [
        (KIB, 2, 0.93, math.inf),
        (32 * KIB, 4, 0.93, math.inf),
        (64 * KIB, 2, 0.95, math.inf),
        (256 * KIB, 4, 0.87, math.inf),
        (512 * KIB, 4, 0.82, math.inf),
        (MIB, 4, 0.82, 1.18),
        (8 * MIB, 2, 0.95, 1.12),
        (16 * MIB, 2, 0.95, 1.06),
        (256 * MIB, 4, 0.96, 1.06),
    ],
)
def test_goals(nbytes: int, world: int, of_peer: float, of_floor: float) -> None:
    goal = goals.goal_for(nbytes, world)
    assert goal is not None
    assert (goal.of_peer, goal.of_floor) == (of_peer, of_floor)


def test_no_goal_beyond_what_is_promised() -> None:
    assert goals.goal_for(512 * MIB, 2) is None
    assert goals.goal_for(KIB, 3) is None


def test_times_of_before() -> None:
    push = ("sglang", "one_shot_push")
    assert goals.reference_us(push, KIB, 2) == 2.00
    assert goals.reference_us(push, 8 * MIB, 4) == 90.3
    between = goals.reference_us(push, 2 * KIB, 2)
    assert between is not None
    assert 2.00 < between < 2.24
    assert goals.reference_us(push, 64 * MIB, 2) is None
    assert goals.reference_us(("sglang", "two_shot_pull"), 32 * KIB, 2) is None
    assert goals.reference_us(push, KIB, 3) is None
    assert goals.reference_us(("gloo", "default"), KIB, 2) is None


# ---- verdicts ------------------------------------------------------------------------------------


def test_won() -> None:
    assert verdict(field(1.80)) == "won"
    (cell,) = goals.cells(field(1.80))
    assert (cell.peer, cell.peer_us) == ("sglang one_shot_push", 2.00)
    assert cell.ratio == pytest.approx(0.90)
    assert cell.won


def test_lost_by_a_little() -> None:
    assert verdict(field(1.87)) == "lost: 0.94 of the fastest peer, at most 0.93"


def test_near_the_floor_is_excused_on_two_gpus_in_the_middle() -> None:
    floor = floor_us(512 * KIB, 2)
    best = goals.reference_us(("sglang", "one_shot_push"), 512 * KIB, 2)
    assert best is not None
    assert 0.95 * best > 1.06 * floor  # so the peers are made faster here
    rows = field(1.05 * floor, 512 * KIB)
    fast = [r if r.backend == "pyallreduce" else dataclasses.replace(r, us=floor) for r in rows]
    assert verdict(fast) == "won"
    slow = [
        r if r.backend != "pyallreduce" else dataclasses.replace(r, us=1.07 * floor) for r in fast
    ]
    assert verdict(slow).startswith("lost: 1.07")


def test_far_from_the_floor_is_lost_however_slow_the_peers_are() -> None:
    us = 1.13 * floor_us(MIB, 2)
    rows = [
        r if r.backend == "pyallreduce" else dataclasses.replace(r, us=r.us * 1.1)
        for r in field(us, MIB)
    ]
    assert verdict(rows) == "lost: 1.13 of the floor, at most 1.12"


@pytest.mark.parametrize(
    "who",
    ["nccl_default", "torch_symm_two_shot", "vllm_default", "flashinfer_one_shot",
     "sglang_one_shot_push"],
)  # fmt: skip
def test_without_a_peer_nothing_is_won(who: str) -> None:
    assert verdict(field(0.1, **{who: 0.0})).startswith("not counted: without")


def test_windows_are_welcome_and_not_demanded() -> None:
    assert verdict(field(1.80, nccl_sym_symmetric=0.0)) == "won"


def test_a_slow_day_of_a_peer_is_no_victory() -> None:
    assert verdict(field(1.80, vllm_default=1.16)).startswith("not counted: vllm at")
    assert verdict(field(1.80, vllm_default=1.14)) == "won"


def test_a_peer_that_is_wrong_is_missing() -> None:
    rows = [
        dataclasses.replace(r, verified=False) if r.backend == "sglang" else r for r in field(1.8)
    ]
    assert verdict(rows) == "not counted: without sglang one_shot_push"


def test_a_wrong_result_of_ours_is_lost() -> None:
    rows = field(0.1)
    rows[0] = dataclasses.replace(rows[0], verified=False)
    assert verdict(rows) == "lost: wrong result"


def test_our_forced_algorithms_are_no_peers() -> None:
    rows = [*field(1.80), record("pyallreduce", "one_shot", 1.0)]
    assert verdict(rows) == "won"


@pytest.mark.parametrize("mode", ["graph-cold", "graph-chain"])
def test_other_modes_ask_for_the_fastest(mode: str) -> None:
    rows = [dataclasses.replace(r, mode=mode) for r in field(1.99)]
    assert verdict(rows) == "won"
    rows = [dataclasses.replace(r, mode=mode) for r in field(2.01)]
    assert verdict(rows).startswith("lost")


def test_eager_is_judged_by_the_host() -> None:
    def eager(ours: float, peers: float) -> str:
        rows = field(50.0, 8 * KIB)
        return verdict(
            [
                dataclasses.replace(
                    r, mode="eager", host_us=ours if r.backend == "pyallreduce" else peers
                )
                for r in rows
            ]
        )

    assert eager(5.9, 7.0) == "won"
    assert eager(6.1, 7.0) == "lost: 6.1 us on the host, at most 6"
    assert eager(5.0, 4.0) == "lost: 5.0 us on the host, a peer 4.0"


def test_on_the_cpu_no_gpu_peer_is_asked_for() -> None:
    rows = [
        record("pyallreduce", "auto", 5.0, mode="eager", floor=None),
        record("gloo", "default", 9.0, mode="eager", floor=None),
    ]
    assert verdict(rows) == "won"
    assert verdict(rows[:1]) == "not counted: no peer"


def test_tails_and_dtypes() -> None:
    ours = record("pyallreduce", "auto", 2.0)
    rows = [
        dataclasses.replace(ours, us_p99=2.6),
        dataclasses.replace(ours, us_p99=2.7, bytes=2 * KIB),
        dataclasses.replace(ours, us_p99=9.0, bytes=MIB),
        dataclasses.replace(ours, us=2.06, dtype="float16"),
        dataclasses.replace(ours, us=2.07, dtype="float32"),
        record("nccl", "default", 2.0, us_p99=9.0),
    ]
    assert [r.bytes for r in goals.long_tails(rows)] == [2 * KIB]
    assert [r.dtype for r in goals.dtypes_apart(rows)] == ["float32"]
    lines = compare_report.summary(rows, [])
    assert "# ours, p99 above 1.3 x median below 1M: bfloat16 2048" in lines
    assert "# ours, more than 3 % slower than bfloat16: float32 1024" in lines


# ---- who takes part ------------------------------------------------------------------------------


def test_everybody_of_the_device_by_default() -> None:
    on_gpus = [e.name for e in registry.choose([], "cuda")]
    assert on_gpus == [
        *("pyallreduce", "nccl", "nccl_sym", "torch_symm", "vllm", "flashinfer", "sglang"),
    ]
    assert [e.name for e in registry.choose([], "cpu")] == ["pyallreduce", "gloo"]


def test_chosen_by_name() -> None:
    chosen = registry.choose(["sglang:two_shot_pull", "pyallreduce"], "cuda")
    assert [(e.name, e.algorithms) for e in chosen] == [
        ("pyallreduce", ("auto", "one_shot", "two_shot")),
        ("sglang", ("two_shot_pull",)),
    ]
    both = registry.choose(["sglang:two_shot_pull", "sglang"], "cuda")
    assert both[0].algorithms == ("one_shot_push", "two_shot_pull")


@pytest.mark.parametrize("name", ["ncl", "sglang:ring", "", ":"])
def test_an_unknown_name_is_refused_with_the_known(name: str) -> None:
    with pytest.raises(ValueError, match="expected one of pyallreduce, nccl"):
        registry.choose([name], "cuda")


def test_why_missing() -> None:
    by_name = {entry.name: entry for entry in registry.ENTRIES}
    assert registry.why_missing(by_name["vllm"], 3) == "does not serve 3 ranks"
    assert registry.why_missing(by_name["pyallreduce"], 3) == ""
    absent = dataclasses.replace(by_name["sglang"], packages=("no_such_package",))
    assert registry.why_missing(absent, 2) == "not installed (no_such_package)"


@pytest.mark.parametrize("entry", registry.ENTRIES, ids=lambda e: e.name)
def test_every_module_is_what_the_registry_says(entry: registry.Entry) -> None:
    module = importlib.import_module(entry.module)  # imports no backend
    assert list(inspect.signature(module.make).parameters) == ["algorithm", "place"]
    assert hasattr(module, "build") is entry.jit


# ---- buffers and modes ---------------------------------------------------------------------------


def test_cold_buffers_exceed_the_cache_twice() -> None:
    assert modes.buffers_of(KIB, "graph-cold", 200) == 200  # each used once a replay
    for nbytes in (MIB, 8 * MIB, 256 * MIB):
        assert modes.buffers_of(nbytes, "graph-cold", 200) * nbytes > 2 * 50 * MIB
    assert modes.buffers_of(256 * MIB, "graph-cold", 50) == 2
    assert {modes.buffers_of(KIB, mode, 200) for mode in MODES if mode != "graph-cold"} == {1}


def test_place_knows_what_it_will_be_asked_for() -> None:
    place = Place(0, 2, torch.device("cpu"), ((1000, 3), (4096, 1), (MIB, 2)))
    assert place.largest() == MIB
    assert place.largest(5000) == 4096
    assert place.largest(10) == 0
    assert place.arena_bytes() == 2 * MIB
    assert place.arena_bytes(5000) == 4096
    assert place.arena_bytes(1000) == 3 * 1024  # whole lines


def test_views_are_aligned_and_apart() -> None:
    arena = Arena(torch.zeros(4096, dtype=torch.uint8))
    first, second = arena.views(2, 500, torch.bfloat16)
    first.fill_(1)
    assert not bool(second.any())
    assert (second.data_ptr() - first.data_ptr()) % 256 == 0


def test_ping_pong_goes_back_and_forth() -> None:
    class Twice(PingPong):
        def __init__(self, place: Place) -> None:
            super().__init__(place)
            self.pair = tuple(Arena(torch.zeros(1024, dtype=torch.uint8)) for _ in range(2))

        def arenas(self) -> tuple[Arena, Arena]:
            return self.pair[0], self.pair[1]

        def reduce_into(self, x: torch.Tensor, out: torch.Tensor) -> None:
            torch.mul(x, 2, out=out)

    peer = Twice(Place(0, 2, torch.device("cpu"), ((64, 2),)))
    x, other = peer.buffers(2, 16, torch.float32)
    x.fill_(1)
    y = peer.all_reduce(x)
    assert y.data_ptr() not in (x.data_ptr(), other.data_ptr())
    z = peer.all_reduce(y)
    assert z.data_ptr() == x.data_ptr()
    assert float(z[0]) == 4.0


def test_what_a_backend_serves() -> None:
    class Small(Peer):
        limit = 1024
        dtypes = (torch.float32,)

        def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
            return [torch.zeros(elements, dtype=dtype) for _ in range(count)]

        def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
            return x

    peer = Small(Place(0, 2, torch.device("cpu"), ((64, 2),)))
    assert peer.serves(1024, torch.float32, "eager")
    assert not peer.serves(1025, torch.float32, "eager")
    assert not peer.serves(64, torch.float16, "eager")
    assert not peer.serves(64, torch.float32, "graph")  # no graphs on the CPU


def test_modes_are_read() -> None:
    assert parse_modes("") == ()
    assert parse_modes("eager, graph") == ("graph", "eager")
    with pytest.raises(ValueError, match="graph-chain"):
        parse_modes("warm")


def test_a_job_survives_the_way_to_the_ranks() -> None:
    (entry,) = registry.choose(["sglang"], "cuda")
    job = PLAN.job(entry, entry.algorithms)
    assert Job.from_json(json.loads(json.dumps(dataclasses.asdict(job)))) == job
    assert list(job.cells()) == [("bfloat16", "eager", 1024), ("bfloat16", "eager", 4096)]


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
