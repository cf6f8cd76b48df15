# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Which launch shapes are raced for a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyallreduce.bench.candidates import LANES, candidates, sizes_between
from pyallreduce.policy import ONE_SHOT, TWO_SHOT, Limits

KIB, MIB = 1 << 10, 1 << 20


@given(st.integers(1, 1 << 30), st.integers(2, 8), st.integers(1, 128))
def test_all_are_launches_that_can_be_made(nbytes: int, world: int, blocks: int) -> None:
    plans = candidates(nbytes, Limits(world, "cuda", blocks))
    assert plans
    assert len(set(plans)) == len(plans)
    for plan in plans:
        assert 1 <= plan.blocks <= blocks
        assert plan.lanes in LANES
    assert plans == candidates(nbytes, Limits(world, "cuda", blocks))


def test_a_small_message_has_few() -> None:
    plans = candidates(KIB, Limits(2, "cuda", 128))
    assert {(p.algorithm, p.blocks, p.lanes) for p in plans} == {
        (ONE_SHOT, 2, 32),
        (ONE_SHOT, 1, 64),
        (TWO_SHOT, 1, 32),
    }


def test_small_blocks_take_a_message_in_one_step() -> None:
    plans = candidates(64 * KIB, Limits(2, "cuda", 128))
    assert (ONE_SHOT, 128, 32) in {(p.algorithm, p.blocks, p.lanes) for p in plans}
    assert all(
        p.blocks * p.lanes * 16 >= 64 * KIB
        for p in plans
        if p.lanes <= 64 and p.algorithm == ONE_SHOT
    )
    assert min(p.lanes for p in candidates(8 * MIB, Limits(2, "cuda", 128))) == 96


def test_on_the_host_several_grids_are_raced() -> None:
    plans = candidates(16 * KIB, Limits(2, "host", 8))
    assert [p.blocks for p in plans if p.algorithm == ONE_SHOT] == [8, 6, 4, 2]


@pytest.mark.parametrize(("world", "algorithms"), [(2, {ONE_SHOT, TWO_SHOT}), (4, {TWO_SHOT})])
def test_one_shot_is_not_raced_where_it_is_hopeless(world: int, algorithms: set[int]) -> None:
    plans = candidates(16 * MIB, Limits(world, "cuda", 128))
    assert {p.algorithm for p in plans} == algorithms


def test_a_sweep_is_short() -> None:
    for world in (2, 3, 4):
        counts = [
            len(candidates(n, Limits(world, "cuda", 128))) for n in sizes_between(KIB, 16 * MIB)
        ]
        assert max(counts) <= 55
        assert sum(counts) <= 600
