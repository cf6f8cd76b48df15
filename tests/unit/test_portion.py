# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How a message is cut into launches and laps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyallreduce import _C
from pyallreduce.policy import ONE_SHOT, TWO_SHOT, Limits, plan_for

VECTOR = 16  # bytes
LEAST_STEPS = 4  # csrc/protocol/two_shot.h


@given(
    world=st.integers(2, 8),
    slab=st.sampled_from([4 << 20, 64 << 20, 512 << 20, 16 << 30]),
    algorithm=st.sampled_from([ONE_SHOT, TWO_SHOT]),
    blocks=st.integers(1, 128),
    lanes=st.integers(1, 16).map(lambda warps: 32 * warps),
    nbytes=st.integers(0, 64 << 30),
)
def test_portions_fit_the_mailboxes(
    world: int, slab: int, algorithm: int, blocks: int, lanes: int, nbytes: int
) -> None:
    layout = _C.Layout(world, slab)
    done, laps, tile = layout.next_portion(algorithm, blocks, lanes, nbytes)
    most = layout.one_shot_tile if algorithm == ONE_SHOT else layout.two_shot_tile
    owners = 1 if algorithm == ONE_SHOT else world
    assert tile <= most
    assert done <= nbytes
    assert (done > 0) == (nbytes > 0)
    assert owners * laps * blocks * tile * VECTOR >= done  # all of it has a place
    assert laps == 1 or (algorithm == TWO_SHOT and tile >= LEAST_STEPS * lanes)
    assert done // 2 + 8 < 1 << 32  # elements, and the rounding to vectors
    assert done == nbytes or done % (VECTOR * owners) == 0


@pytest.mark.parametrize(("mebibytes", "laps"), [(1, 1), (22, 1), (23, 2), (64, 3), (256, 12)])
def test_a_long_message_is_one_launch_of_laps(mebibytes: int, laps: int) -> None:
    """By the default slab of two ranks on GPUs."""
    nbytes = mebibytes << 20
    portion = _C.Layout(2, 64 << 20).next_portion(TWO_SHOT, 128, 512, nbytes)
    assert portion[:2] == (nbytes, laps)


@pytest.mark.parametrize("world", range(2, 9))
def test_by_the_shipped_shapes_a_large_message_goes_in_laps(world: int) -> None:
    plan = plan_for(64 << 20, Limits(world, "cuda", 128))
    portion = _C.Layout(world, 64 << 20).next_portion(
        plan.algorithm, plan.blocks, plan.lanes, 64 << 20
    )
    assert portion[0] >= 48 << 20
    assert portion[1] > 1


@pytest.mark.parametrize("slab_bytes", [64 << 10, 1 << 20, 12 << 20, 64 << 20])
@pytest.mark.parametrize("world", range(2, 9))
def test_slabs_lie_apart_where_there_is_room(world: int, slab_bytes: int) -> None:
    try:
        layout = _C.Layout(world, slab_bytes)
    except ValueError:
        assert slab_bytes == 64 << 10
        return
    assert layout.room_apart == (world - 1) * layout.apart
    assert layout.room_apart + layout.bytes <= slab_bytes
    assert layout.apart % 4096 == 0
    assert (layout.apart > 0) is (world > 2 and slab_bytes > 4 * (world - 1) << 20)


def test_what_equal_laps_would_make_too_short_goes_in_full_ones() -> None:
    layout = _C.Layout(7, 64 << 20)
    done, laps, tile = layout.next_portion(TWO_SHOT, 128, 256, 64 << 20)
    assert (laps, tile) == (4, layout.two_shot_tile)
    assert done == 4 * layout.two_shot_capacity(128) < 64 << 20


def test_a_lap_too_short_is_a_launch() -> None:
    layout = _C.Layout(8, 64 << 20)
    assert layout.next_portion(TWO_SHOT, 128, 480, 64 << 20)[:2] == (
        layout.two_shot_capacity(128),
        1,
    )
