# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Any sequence of calls on 2 to 8 host ranks gives the rank-order sum, to the bit, on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyallreduce.check.verify import corrupted, judge
from pyallreduce.policy import AlgorithmName
from tests.properties.host_group import DTYPES, HostGroup, aligned, on_every_rank

pytestmark = pytest.mark.ranks


@dataclass(frozen=True)
class Call:
    """`group`: 0 is everybody, the others are sub-communicators."""

    group: int
    elements: int
    dtype: torch.dtype
    algorithm: AlgorithmName
    in_place: bool


@dataclass(frozen=True)
class Program:
    """What all ranks run: `calls`, then the same calls on the same tensors with new data, `replays`
    times, as a graph's replays are."""

    world: int
    members: tuple[tuple[int, ...], ...]
    calls: tuple[Call, ...]
    replays: int
    seed: int


SIZES = st.one_of(
    st.integers(0, 40),
    st.integers(0, 9_000),
    st.sampled_from([256, 1024, 4096, 70_000]),  # the last goes in chunks on many ranks
)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    world = draw(st.integers(2, 8))
    subsets = st.sets(st.integers(0, world - 1), min_size=2).map(lambda s: tuple(sorted(s)))
    members = (tuple(range(world)), *draw(st.lists(subsets, max_size=2)))
    calls = st.builds(
        Call,
        st.integers(0, len(members) - 1),
        SIZES,
        st.sampled_from(DTYPES),
        st.sampled_from(["auto", "one_shot", "two_shot"]),
        st.booleans(),
    )
    return Program(
        world,
        members,
        tuple(draw(st.lists(calls, min_size=1, max_size=8))),
        draw(st.integers(0, 2)),
        draw(st.integers(0, 2**20)),
    )


def data(program: Program, turn: int, number: int, rank: int) -> torch.Tensor:
    """Values over many magnitudes, some of them special."""
    call = program.calls[number]
    seed = ((program.seed * 3 + turn) * 8 + number) * 8 + rank
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randint(-12, 12, (call.elements,), generator=generator).float()
    return (torch.randn(call.elements, generator=generator) * torch.exp2(scale)).to(call.dtype)


def run(program: Program, spoil: Callable[[torch.Tensor], torch.Tensor] | None = None) -> list[str]:
    """What is wrong, as sentences. `spoil` is done to rank 0's results: the negative control."""
    with ExitStack() as stack:
        groups = [stack.enter_context(HostGroup.open(len(m))) for m in program.members]

        def body(rank: int) -> dict[tuple[int, int], torch.Tensor]:
            results = {}
            xs = [aligned(data(program, 0, n, rank)) for n in range(len(program.calls))]
            outs = [x if c.in_place else aligned(x) for x, c in zip(xs, program.calls, strict=True)]
            for turn in range(1 + program.replays):
                for number, call in enumerate(program.calls):
                    if rank not in program.members[call.group]:
                        continue
                    x, out = xs[number], outs[number]
                    x.copy_(data(program, turn, number, rank))
                    place = program.members[call.group].index(rank)
                    groups[call.group].call(place, x, out, call.algorithm)
                    results[turn, number] = out.clone()
                    if not call.in_place and not torch.equal(x, data(program, turn, number, rank)):
                        raise AssertionError("the input was changed")
            return results

        results = on_every_rank(program.world, body)
    if spoil is not None:
        results[0] = {key: spoil(value) for key, value in results[0].items()}
    return list(_faults(program, results))


def _faults(program: Program, results: Sequence[dict[tuple[int, int], torch.Tensor]]) -> list[str]:
    faults = []
    for turn in range(1 + program.replays):
        for number, call in enumerate(program.calls):
            members = program.members[call.group]
            inputs = [data(program, turn, number, rank) for rank in members]
            outcomes = [judge(results[r][turn, number], inputs, exact_bits=True) for r in members]
            faults += [f"turn {turn}, {call}: {o.fault}" for o in outcomes if o.wrong]
            if len({o.checksum for o in outcomes}) != 1:
                faults.append(f"turn {turn}, {call}: the ranks differ")
    return faults


QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
THOROUGH = settings(QUICK, max_examples=3000)


@pytest.mark.timeout(400)
@QUICK
@given(programs())
def test_any_sequence_of_calls_is_right(program: Program) -> None:
    assert run(program) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@THOROUGH
@given(programs())
def test_any_sequence_of_calls_is_right_at_length(program: Program) -> None:
    assert run(program) == []


def test_one_wrong_bit_is_seen() -> None:
    """The negative control: both as a wrong sum and as a difference between ranks."""
    call = Call(0, 100, torch.bfloat16, "two_shot", in_place=True)
    faults = run(Program(3, ((0, 1, 2),), (call,), 0, 1), spoil=corrupted)
    assert any("elements are wrong" in fault for fault in faults)
    assert any("the ranks differ" in fault for fault in faults)
