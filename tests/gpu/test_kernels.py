# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The kernels on one GPU: every algorithm, dtype and world size, bit for bit; stops, graphs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pyallreduce.failure import Stop, stop_of
from pyallreduce.policy import plan_for
from pyallreduce.reference import rank_order_sum

sys.path.insert(0, str(Path(__file__).parent))
from local_group import DEVICE, WAYS, LocalGroup, Way, random_inputs

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [0, 1, 2, 7, 8, 9, 511, 4099, 65_536, 100_003, 700_001]
Make = Callable[..., LocalGroup]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[LocalGroup] = []

    def build(world: int, **options: float) -> LocalGroup:
        made.append(LocalGroup(world, **options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for group in made:
        group.close()


@pytest.mark.parametrize("world", range(2, 9))
def test_every_size_is_the_rank_order_sum(make: Make, world: int) -> None:
    group = make(world)
    for dtype in DTYPES:
        for turn, elements in enumerate(SIZES):
            inputs = random_inputs(world, elements, dtype, turn)
            expected = rank_order_sum(inputs)
            for way in WAYS:
                outs = [torch.full_like(x, 7) for x in inputs]
                group.all_reduce(inputs, outs, way)
                assert all(torch.equal(o, expected) for o in outs), (dtype, elements, way)
                copies = [x.clone() for x in inputs]
                group.all_reduce(copies, copies, way)
                assert all(torch.equal(c, expected) for c in copies), ("in place", dtype, elements)


@pytest.mark.parametrize("way", WAYS)
def test_messages_of_many_chunks(make: Make, way: Way) -> None:
    group = make(3, slab_bytes=2 << 20)
    inputs = random_inputs(3, 3_000_017, torch.bfloat16, 1)
    outs = [torch.empty_like(x) for x in inputs]
    group.all_reduce(inputs, outs, way)
    assert all(torch.equal(o, rank_order_sum(inputs)) for o in outs)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_messages_of_many_laps(make: Make, world: int) -> None:
    group = make(world, slab_bytes=128 << 20, blocks=8)
    plan = plan_for(1 << 30, group.limits, "two_shot")
    lap = group.layout.two_shot_capacity(plan.blocks)
    for laps in (2, 3, 5, 1):
        elements = (laps * lap - lap // 7) // 2
        portion = group.layout.next_portion(plan.algorithm, plan.blocks, plan.lanes, 2 * elements)
        assert portion[:2] == (2 * elements, laps)
        inputs = random_inputs(world, elements, torch.bfloat16, 1)
        outs = [torch.empty_like(x) for x in inputs]
        group.all_reduce(inputs, outs, "two_shot")
        assert all(torch.equal(o, rank_order_sum(inputs)) for o in outs), laps


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_and_the_sentinel(make: Make, dtype: torch.dtype, way: Way) -> None:
    words = torch.tensor([-1, 0x7FFF7FFF, -0x80000000, 0, 0x00010001, 0x7F800000, -0x00800000])
    base = words.to(torch.int32).repeat(300).to(DEVICE)
    inputs = [base.roll(r * 3).view(dtype) for r in range(4)]
    outs = [torch.empty_like(x) for x in inputs]
    make(4).all_reduce(inputs, outs, way)
    expected = rank_order_sum(inputs)
    bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    for out in outs:
        same = out.view(bits) == expected.view(bits)
        assert bool((same | (out.isnan() & expected.isnan())).all())
        assert torch.equal(out.view(bits), outs[0].view(bits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_pair_of_halves_sums_as_fp32_rounds(make: Make, dtype: torch.dtype) -> None:
    """The packed addition of two ranks, on all 2^32 pairs; NaN is one NaN."""
    group = make(2, slab_bytes=64 << 20)
    every = torch.arange(1 << 16, dtype=torch.int32, device=DEVICE).to(torch.int16)
    first = every.repeat(256).view(dtype)
    out = torch.empty_like(first)
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for some in every.split(256):
        second = some.repeat_interleave(1 << 16).view(dtype)
        group.all_reduce([first, second], [out, torch.empty_like(out)], "one_shot")
        expected = (first.float() + second.float()).to(dtype)
        bits = torch.where(expected.isnan(), 0x7FFF, expected.view(torch.int16))
        wrong += (out.view(torch.int16) != bits).sum()
    assert int(wrong) == 0


def capture(
    group: LocalGroup, calls: list[tuple[list[torch.Tensor], Way]]
) -> list[torch.cuda.CUDAGraph]:
    """A graph a rank, of in-place calls on the tensors given."""
    graphs = []
    for rank, stream in enumerate(group.streams):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for tensors, way in calls:
                x = tensors[rank]
                group.launch(rank, x, x, group.plan(x, way))
        graphs.append(graph)
    return graphs


def test_ten_thousand_replays_of_interleaved_graphs(make: Make) -> None:
    world = 2
    group = make(world)
    small = [torch.zeros(500, device=DEVICE) for _ in range(world)]
    large = [torch.zeros(70_001, dtype=torch.bfloat16, device=DEVICE) for _ in range(world)]
    eager = [torch.zeros(3001, device=DEVICE) for _ in range(world)]
    first = capture(group, [(small, "one_shot"), (large, "two_shot")])
    second = capture(group, [(large, "one_shot"), (small, "two_shot"), (small, "one_shot")])
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for turn in range(10_000):
        value = float(turn % 61 + 1)
        for rank, stream in enumerate(group.streams):
            with torch.cuda.stream(stream):
                small[rank].fill_(value + rank)
                large[rank].fill_(value % 16)
                (second if turn % 3 == 0 else first)[rank].replay()
                if turn % 5 == 0:
                    eager[rank].fill_(value)
                    plan = group.plan(eager[rank], "one_shot")
                    group.launch(rank, eager[rank], eager[rank], plan)
        # Only now: what allocates or loads a kernel may wait for a rank whose peer has not started.
        torch.cuda.synchronize()
        sums = (2 * value + 1) * (2 if turn % 3 == 0 else 1)
        for rank in range(world):
            wrong += (small[rank] != sums).sum() + (large[rank] != 2 * (value % 16)).sum()
            if turn % 5 == 0:
                wrong += (eager[rank] != 2 * value).sum()
    torch.cuda.synchronize()
    assert [rank.state() for rank in group.ranks] == [0, 0]
    assert int(wrong) == 0


@pytest.mark.parametrize("elements", [4099, 300_001])
@pytest.mark.parametrize("way", WAYS)
def test_an_absent_peer_ends_at_the_deadline_and_the_context_lives(
    make: Make, way: Way, elements: int
) -> None:
    group = make(2, deadline_s=0.4)
    x = torch.ones(elements, device=DEVICE)
    out = torch.zeros_like(x)
    begin = time.monotonic()
    assert group.launch(0, x, out, group.plan(x, way)) == 0
    torch.cuda.synchronize()
    assert 0.4 < time.monotonic() - begin < 0.7  # no wait follows another
    assert stop_of(group.ranks[0].state()) is Stop.DEADLINE
    assert group.ranks[0].report().peer == 1
    assert bool(out.isnan().all())
    # Later calls drain at once, here and at the peer; the context is sound.
    assert group.launch(0, x, out, group.plan(x, way)) != 0
    assert group.launch(1, x, out, group.plan(x, way)) in (0, group.ranks[1].state())
    torch.cuda.synchronize()
    assert stop_of(group.ranks[1].state()) is Stop.PEER
    a = torch.eye(64, device=DEVICE)
    assert torch.equal(a @ a, a)
    group.arm(2)
    outs = [torch.zeros_like(x) for _ in range(2)]
    group.all_reduce([x, x], outs, way)
    assert all(bool((o == 2).all()) for o in outs)


@pytest.mark.parametrize("way", WAYS)
def test_calls_that_differ_are_found_before_any_output(make: Make, way: Way) -> None:
    group = make(2)
    x, y = torch.ones(1000, device=DEVICE), torch.ones(1001, device=DEVICE)
    outs = [torch.zeros_like(x), torch.zeros_like(y)]
    for rank, tensor in enumerate((x, y)):
        with torch.cuda.stream(group.streams[rank]):
            group.launch(rank, tensor, outs[rank], group.plan(tensor, way))
    torch.cuda.synchronize()
    stops = {stop_of(rank.state()) for rank in group.ranks}
    assert Stop.MISMATCH in stops
    assert stops <= {Stop.MISMATCH, Stop.PEER}
    assert not any(bool((o > 0).any()) for o in outs)


@pytest.mark.parametrize("way", WAYS)
def test_a_refusal_is_heard(make: Make, way: Way) -> None:
    group = make(2)
    x = torch.ones(1000, device=DEVICE)
    out = torch.zeros_like(x)
    begin = time.monotonic()
    with torch.cuda.stream(group.streams[0]):
        group.launch(0, x, out, group.plan(x, way))
    group.ranks[1].refuse(9, group.streams[1].cuda_stream)
    torch.cuda.synchronize()
    assert time.monotonic() - begin < 1
    assert stop_of(group.ranks[0].state()) is Stop.REFUSED
    assert bool(out.isnan().all())


@pytest.mark.parametrize("way", WAYS)
def test_two_calls_of_one_rank_at_once_are_refused(make: Make, way: Way) -> None:
    group = make(2, deadline_s=2.0)
    x = torch.ones(1000, device=DEVICE)
    for stream in (torch.cuda.Stream(DEVICE), torch.cuda.Stream(DEVICE)):
        with torch.cuda.stream(stream):
            group.launch(0, x, torch.empty_like(x), group.plan(x, way))
    torch.cuda.synchronize()
    assert stop_of(group.ranks[0].state()) is Stop.OVERLAP
