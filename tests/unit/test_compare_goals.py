# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What a cell of `bench --compare` is worth."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pyallreduce.bench import compare_report, goals
from pyallreduce.bench.floor import algorithm_floor_us, floor_us
from tests.unit.compared import KIB, MIB, field, record, verdict

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
    assert verdict(field(1.87)) == "lost: 0.935 of the fastest peer, at most 0.93"


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
    assert verdict(rows) == "lost: 1.130 of the floor, at most 1.12"


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
