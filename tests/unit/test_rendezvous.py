# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How a rank waits for a new generation: rank 0 of three, over pages that are lists."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from pyallreduce.errors import AllReduceAborted, CommunicatorClosed, ExchangeTimeout
from pyallreduce.rendezvous import meet


@pytest.fixture(name="slabs")
def make_slabs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Slabs whose peers want what each look gives; the last look stays."""

    def make(*looks: list[int], absent: int = 0, death: tuple[int, str] = (-1, "")) -> Any:
        left, own = list(looks), [0]

        def wanted() -> list[int]:
            return own + (left.pop(0) if len(left) > 1 else left[0])

        records = [SimpleNamespace(absent=word, state=0) for word in (absent, 0, 0)]
        monkeypatch.setattr("pyallreduce.rendezvous.read_records", lambda _slabs: records)
        return SimpleNamespace(
            own=own,
            layout=SimpleNamespace(world=3),
            want=lambda generation: own.__setitem__(0, generation),
            wanted=wanted,
            ended=lambda: death,
        )

    return make


def test_it_ends_when_all_have_come(slabs: Callable[..., Any]) -> None:
    there = slabs([0, 4], [0, 5], [5, 5])
    meet(there, 0, 5, 10.0)
    assert there.own == [5], "peers that look later would miss this rank"


def test_one_that_has_come_and_closed_since_is_named(slabs: Callable[..., Any]) -> None:
    """The exchange that follows would wait for it until its deadline."""
    with pytest.raises(AllReduceAborted, match="rank 1 has closed"):
        meet(slabs([5, 5], absent=1 << 1), 0, 5, 10.0)


def test_one_that_has_come_and_died_since_is_named(slabs: Callable[..., Any]) -> None:
    with pytest.raises(AllReduceAborted, match="rank 2 died"):
        meet(slabs([5, 5], death=(2, "rank 2 died")), 0, 5, 10.0)


def test_nobody_gives_up_when_the_last_one_comes_in_that_instant(slabs: Callable[..., Any]) -> None:
    """That one may have seen this rank, and gone on."""
    there = slabs([5, 4], [5, 5])
    meet(there, 0, 5, -1.0)
    assert there.own == [5]


def test_an_end_of_the_pages_is_told_as_such(slabs: Callable[..., Any]) -> None:
    """Another thread closes: then nothing is left to withdraw from."""
    there = slabs([5, 4])
    there.wanted = mock.Mock(side_effect=CommunicatorClosed("closed"))
    there.want = mock.Mock(side_effect=[None, CommunicatorClosed("closed")])
    with pytest.raises(CommunicatorClosed):
        meet(there, 0, 5, 10.0)
    there.want.assert_called_with(0)


@pytest.mark.parametrize("peer", [1, 2])
def test_a_rank_that_has_closed_is_named_at_once(slabs: Callable[..., Any], peer: int) -> None:
    there = slabs([0, 0], absent=1 << peer)
    with pytest.raises(AllReduceAborted, match=f"rank {peer} has closed") as caught:
        meet(there, 0, 5, 10.0)
    assert (caught.value.rank, caught.value.peer) == (0, peer)
    assert there.own == [0]


def test_a_death_is_told_before_a_closing(slabs: Callable[..., Any]) -> None:
    there = slabs([0, 0], absent=1 << 1, death=(2, "rank 2 died"))
    with pytest.raises(AllReduceAborted, match="rank 2 died"):
        meet(there, 0, 5, 10.0)
    assert there.own == [0]


def test_a_rank_that_does_not_come_is_named_at_the_deadline(slabs: Callable[..., Any]) -> None:
    there = slabs([5, 4])
    with pytest.raises(ExchangeTimeout, match=r"rank 2 did not come .* within 0\.01 s") as caught:
        meet(there, 0, 5, 0.01)
    assert (caught.value.rank, caught.value.peer) == (0, 2)
    assert there.own == [0], "a rank that comes later would take this one for waiting"


def test_the_rank_that_never_came_is_named_and_not_who_gave_it_up(
    slabs: Callable[..., Any],
) -> None:
    with pytest.raises(ExchangeTimeout, match="rank 2 did not come"):
        meet(slabs([0, 0], [5, 0], [0, 0]), 0, 5, 0.05)
