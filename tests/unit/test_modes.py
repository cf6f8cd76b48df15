# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The modes of the comparison, with a stand-in for graphs: a replay makes its calls anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyallreduce.bench import compare_rank, modes
from pyallreduce.bench.options import MODES, Mode
from pyallreduce.bench.peers.base import Arena, Peer, PingPong, Place

KIB, MIB = 1 << 10, 1 << 20
BUDGET = modes.Budget(samples=6, warmup=2, seconds=0.3)


class Replayed:
    def __init__(self, work: Callable[[], list[torch.Tensor]]) -> None:
        self.replay = work


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs, events and the other ranks, for one process without a GPU."""

    def capture(_peer: Peer, work: Callable[[], list[torch.Tensor]]) -> Any:
        return Replayed(work), work()

    def between(work: Callable[[], object], _device: torch.device, **rest: Any) -> Any:
        def sample() -> float:
            rest.get("before", lambda: None)()
            work()
            return 100.0

        return sample

    monkeypatch.setattr(modes, "_capture", capture)
    monkeypatch.setattr(modes, "between_events", between)
    monkeypatch.setattr(modes, "meet", lambda: None)
    monkeypatch.setattr(modes, "slowest", list)
    monkeypatch.setattr(modes, "_flusher", lambda _device: lambda: None)


def place(nbytes: int, count: int) -> Place:
    return Place(0, 2, torch.device("cpu"), ((nbytes, count),))


class Zeroes(Peer):
    """Sums in place as the data of the harness does: to zero."""

    def __init__(self, at: Place) -> None:
        super().__init__(at)
        self.arena = Arena(torch.zeros(at.arena_bytes(), dtype=torch.uint8))
        self.calls: list[tuple[int, bool]] = []
        self.registered = 0

    def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
        return self.arena.views(count, elements, dtype)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((x.data_ptr(), self.captures))
        return x.zero_()

    def captured(self) -> None:
        self.registered += 1


class Apart(PingPong):
    """The same into the partner; `right` says whether it does anything."""

    def __init__(self, at: Place, *, right: bool = True) -> None:
        super().__init__(at)
        self.pair = tuple(Arena(torch.ones(at.arena_bytes(), dtype=torch.uint8)) for _ in range(2))
        self.right = right

    def arenas(self) -> tuple[Arena, Arena]:
        return self.pair[0], self.pair[1]

    def reduce_into(self, x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(x * 0 if self.right else x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Zeroes, Apart])
def test_every_mode_gives_figures(mode: Mode, kind: Any) -> None:
    calls = 4
    peer = kind(place(KIB, modes.buffers_of(KIB, mode, calls)))
    figures = modes.measure(peer, mode, KIB, torch.bfloat16, calls, BUDGET)
    assert figures.samples == BUDGET.samples
    assert figures.wrong == 0
    if mode == "graph-chain":
        assert figures.us == 0.0  # both graphs took 100 us
        assert figures.chain_us == 25.0
    elif mode != "eager":
        assert (figures.us, figures.us_p99) == (25.0, 25.0)
    assert figures.host_us is None  # no GPU


@pytest.mark.parametrize("mode", ["graph", "graph-cold", "graph-chain"])
def test_what_does_nothing_is_wrong(mode: Mode) -> None:
    peer = Apart(place(KIB, modes.buffers_of(KIB, mode, 4)), right=False)
    assert modes.measure(peer, mode, KIB, torch.bfloat16, 4, BUDGET).wrong > 0


def test_cold_calls_go_round() -> None:
    count = modes.buffers_of(64 * MIB, "graph-cold", 6)
    peer = Zeroes(place(64 * MIB, count))
    small = modes.Budget(samples=1, warmup=1, seconds=0.001)
    modes.measure(peer, "graph-cold", 64 * MIB, torch.bfloat16, 6, small)
    captured = [at for at, within in peer.calls if within]
    assert count == 3
    assert captured == captured[:3] * 2
    assert len(set(captured)) == 3


def test_dependent_calls_share_one_buffer_and_are_registered_once() -> None:
    peer = Zeroes(place(KIB, 1))
    modes.measure(peer, "graph", KIB, torch.float32, 5, BUDGET)
    assert len({at for at, _ in peer.calls}) == 1
    assert peer.calls[0][1] is False  # an eager call first, which loads code
    assert [within for _, within in peer.calls].count(True) == 5
    assert peer.registered == 1


def test_large_messages_get_fewer_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_wall", lambda sample: sample() and 0.04)
    peer = Zeroes(place(32 * MIB, 1))
    many = dataclasses.replace(BUDGET, samples=200)
    assert modes.measure(peer, "graph", 32 * MIB, torch.bfloat16, 1, many).samples == 7
    assert modes.measure(peer, "graph", KIB, torch.bfloat16, 1, many).samples == 200
    assert modes.measure(peer, "eager", KIB, torch.bfloat16, 1, many).samples == 30


@pytest.mark.parametrize("captured", [False, True])
def test_a_cell_is_verified_in_the_way_it_is_timed(captured: bool) -> None:
    class Sums(Apart):
        def reduce_into(self, x: torch.Tensor, out: torch.Tensor) -> None:
            out.copy_((x.float() + inputs[1].float()).to(x.dtype))

    inputs = [torch.randn(512).to(torch.bfloat16) for _ in range(2)]
    assert compare_rank._wrong(Sums(place(KIB, 1)), inputs, captured) == 0
    wrong = compare_rank._wrong(Apart(place(KIB, 1), right=False), inputs, captured)
    assert wrong > 400
