# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The dispatch table: one answer for a message on all ranks, whatever they know besides."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyallreduce import _C, Config, shipped, tuned, wire
from pyallreduce.bench.candidates import candidates
from pyallreduce.policy import (
    ALGORITHM_NAMES,
    ONE_SHOT,
    TWO_SHOT,
    Limits,
    Plan,
    full_grid,
    left_to_nccl,
    max_lanes,
    plan_for,
    table_for,
    table_lines,
)
from pyallreduce.table import (
    MAX_BLOCKS,
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_LANES,
    Entry,
    Table,
    TableError,
)

KIB, MIB = 1 << 10, 1 << 20
NONCE = bytes(range(16))

sizes = st.integers(0, 1 << 34)
entries = st.builds(
    Entry,
    up_to=st.integers(1, MAX_BYTES),
    algorithm=st.sampled_from(["one_shot", "two_shot", "nccl"]),
    blocks=st.integers(0, MAX_BLOCKS),
    lanes=st.integers(0, MAX_LANES // 32).map(lambda warps: 32 * warps),
)
tables = st.lists(entries, min_size=1, max_size=20, unique_by=lambda e: e.up_to).map(
    lambda rows: Table(tuple(sorted(rows, key=lambda e: e.up_to)), "tuned")
)
limits = st.builds(
    Limits,
    world=st.integers(2, 8),
    target=st.sampled_from(["cuda", "host"]),
    blocks=st.integers(1, 128),
    table=st.none() | tables,
)


@given(limits, sizes, st.sampled_from(["auto", "one_shot", "two_shot"]))
def test_every_plan_can_be_launched(of: Limits, nbytes: int, algorithm: Any) -> None:
    plan = plan_for(nbytes, of, algorithm)
    assert 1 <= plan.blocks <= of.blocks
    assert 32 <= plan.lanes <= max_lanes(of.world)
    assert plan.lanes % 32 == 0
    if algorithm != "auto":
        assert plan.name == algorithm
    elif not left_to_nccl(nbytes, of):
        assert plan.name == table_for(of).entry(nbytes).algorithm


@given(limits, st.lists(sizes, min_size=2, max_size=2))
def test_no_block_is_launched_for_nothing(of: Limits, pair: list[int]) -> None:
    small, large = sorted(pair)
    for algorithm in ("one_shot", "two_shot"):
        plans = [
            plan_for(n, dataclasses.replace(of, table=None), algorithm) for n in (small, large)
        ]  # type: ignore[arg-type]
        vectors = max(1, -(-small // 16))
        assert plans[0].blocks <= vectors
        assert of.target == "cuda" or plans[0].blocks <= plans[1].blocks


@given(st.lists(st.none() | tables, min_size=2, max_size=8), sizes, st.integers(1, 128))
def test_all_ranks_give_one_answer(offers: list[Table | None], nbytes: int, blocks: int) -> None:
    """Each rank has a table of its own, or none; what they exchange gives all the same plan."""
    world = len(offers)
    frames = [
        wire.encode_table(wire.TableOffer(offer), nonce=NONCE, rank=rank, world=world)
        for rank, offer in enumerate(offers)
    ]
    answers = set()
    for _rank in range(world):  # a rank's own table is in the frames alone
        of = Limits(world, "cuda", blocks, tuned.agreed(frames, NONCE))
        answers.add((left_to_nccl(nbytes, of), plan_for(nbytes, of)))
    assert len(answers) == 1
    same = len({offer.digest() if offer else b"" for offer in offers}) == 1
    expected = offers[0] if same else None
    assert tuned.agreed(frames, NONCE) == expected


@given(tables, st.integers(0, wire.FRAME_BYTES * 8 - 1))
def test_a_broken_frame_is_no_table(table: Table, bit: int) -> None:
    frames = [
        wire.encode_table(wire.TableOffer(table), nonce=NONCE, rank=rank, world=2)
        for rank in range(2)
    ]
    assert tuned.agreed(frames, NONCE) == table
    broken = bytearray(frames[1])
    broken[bit // 8] ^= 1 << bit % 8
    assert tuned.agreed([frames[0], bytes(broken)], NONCE) is None
    assert tuned.agreed(frames[::-1], NONCE) is None  # of another rank
    assert tuned.agreed(frames, bytes(16)) is None  # of another job


def test_shipped_tables_leave_nothing_to_nccl() -> None:
    assert set(shipped.GPU) == set(range(2, _C.MAX_RANKS + 1))
    for table in (*shipped.GPU.values(), shipped.HOST):
        assert table.source == "shipped"
        assert not table.leaves
        assert table.entries[-1].up_to == MAX_BYTES


def test_shapes_of_the_table_are_kept_and_small_messages_need_fewer() -> None:
    table = Table((Entry(64 * KIB, "one_shot", 16, 96), Entry(MAX_BYTES, "two_shot", 64, 352)))
    of = Limits(2, "cuda", 128, table)
    assert plan_for(24 * KIB, of) == Plan(ONE_SHOT, 16, 96)
    assert plan_for(KIB, of) == Plan(ONE_SHOT, 1, 96)
    assert plan_for(16 * MIB, of) == Plan(TWO_SHOT, 64, 352)
    assert plan_for(16 * MIB, dataclasses.replace(of, blocks=20)) == Plan(TWO_SHOT, 20, 352)
    # A forced algorithm that the table does not name for this size takes the rule's shape.
    assert plan_for(16 * MIB, of, "one_shot") == Plan(ONE_SHOT, 128, 512)


@given(st.integers(1, 1 << 24), st.integers(1, 16), st.integers(1, 128))
def test_all_steps_of_a_full_grid_are_full(vectors: int, warps: int, most: int) -> None:
    """No more steps than the most blocks would need, and no block that could be spared."""
    lanes = 32 * warps
    blocks = full_grid(vectors, lanes, most)
    steps = math.ceil(vectors / (most * lanes))
    assert 1 <= blocks <= most
    assert math.ceil(math.ceil(vectors / blocks) / lanes) == steps
    assert blocks == 1 or (blocks - 1) * steps * lanes < vectors


def test_every_size_that_is_one_shots_among_two_ranks_goes_in_one_launch() -> None:
    """By the default slab: what the table gives to one-shot has room in its mailboxes."""
    layout = _C.Layout(2, Config().slab_bytes)
    of = Limits(2, "cuda", 128)
    last = max(entry.up_to for entry in shipped.GPU[2].entries if entry.algorithm == "one_shot")
    for nbytes in range(16, last + 1, 16 * 1021):
        plan = plan_for(nbytes, of)
        assert nbytes <= layout.one_shot_capacity(plan.blocks), nbytes
    assert last <= layout.one_shot_capacity(plan_for(last, of).blocks)


@pytest.mark.parametrize("slab", [8, 16, 24, 32, 64])
@pytest.mark.parametrize("blocks", [90, 128])
def test_no_message_takes_more_launches_than_all_blocks_would_need(slab: int, blocks: int) -> None:
    layout = _C.Layout(2, slab * MIB)
    of = Limits(2, "cuda", blocks, tile=layout.one_shot_tile)
    for kib in range(64, 8192, 64):
        plan = plan_for(kib * KIB, of)
        if plan.algorithm == ONE_SHOT:
            launches = math.ceil(kib * KIB / layout.one_shot_capacity(plan.blocks))
            assert launches == math.ceil(kib * KIB / layout.one_shot_capacity(blocks)), (kib, plan)


def test_candidates_are_what_a_table_made_of_them_would_launch() -> None:
    of = Limits(2, "cuda", 128)
    for nbytes in (KIB, 64 * KIB, 640 * KIB, 2 * MIB, 3 * MIB):
        for plan in candidates(nbytes, of):
            table = Table((Entry(MAX_BYTES, plan.name, plan.blocks, plan.lanes),), "tuned")
            assert plan_for(nbytes, dataclasses.replace(of, table=table)) == plan


def test_nccl_for_a_range() -> None:
    table = Table((Entry(MIB, "one_shot"), Entry(8 * MIB, "nccl"), Entry(MAX_BYTES, "two_shot")))
    of = Limits(2, "cuda", 128, table)
    assert table.leaves
    assert [left_to_nccl(n, of) for n in (MIB, MIB + 1, 8 * MIB, 8 * MIB + 1)] == [
        *(False, True, True, False)
    ]
    # Whoever may not follow launches what the shipped table says.
    assert plan_for(4 * MIB, of).name == ALGORITHM_NAMES[ONE_SHOT]


def test_lines_for_people() -> None:
    table = Table((Entry(KIB, "one_shot", 1, 96), Entry(MAX_BYTES, "nccl")), "tuned")
    assert table_lines(Limits(2, "cuda", 128, table)) == (
        "tuned table for 2 ranks, at most 128 blocks",
        "one_shot up to 1024 bytes, at most 1 blocks of 96 lanes",
        "nccl above",
    )
    assert table_lines(Limits(2, "cuda", 128))[0].startswith("shipped table")


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (Entry(KIB, "one_shot"), Entry(KIB, "two_shot")),
        (Entry(2 * KIB, "one_shot"), Entry(KIB, "two_shot")),
        (Entry(0, "one_shot"),),
        (Entry(MAX_BYTES + 1, "one_shot"),),
        (Entry(KIB, "ring"),),  # type: ignore[arg-type]
        (Entry(KIB, "one_shot", -1),),
        (Entry(KIB, "one_shot", MAX_BLOCKS + 1),),
        (Entry(KIB, "one_shot", 1, 100),),
        (Entry(KIB, "one_shot", 1, MAX_LANES + 32),),
        (Entry(1.5, "one_shot"),),  # type: ignore[arg-type]
        (Entry(KIB, "one_shot", True),),
        tuple(Entry(n, "one_shot") for n in range(1, MAX_ENTRIES + 2)),
    ],
    ids=str,
)
def test_a_table_that_no_rank_may_use(rows: tuple[Entry, ...]) -> None:
    with pytest.raises(TableError, match="expected"):
        Table(rows)


def test_lanes_are_those_of_the_module() -> None:
    assert MAX_LANES == _C.MAX_LANES
    assert all(max_lanes(world) == _C.max_lanes(world) for world in range(2, 9))


@given(tables)
def test_digest_tells_tables_apart(table: Table) -> None:
    assert table.digest() == Table(table.entries, "shipped").digest()
    last = table.entries[-1]
    other = dataclasses.replace(last, blocks=(last.blocks + 1) % MAX_BLOCKS)
    assert Table((*table.entries[:-1], other)).digest() != table.digest()
