# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Slabs of the host target, two ranks in one process: armed, offered, opened, proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from pyallreduce import _C
from pyallreduce.reasons import Code
from pyallreduce.slab import SlabError, Slabs, available_bytes

NONCE, STALE = bytes(range(16)), bytes(16)
LAYOUT = _C.Layout(2, 2 << 20)


@pytest.fixture
def pair() -> Iterator[tuple[Slabs, Slabs]]:
    slabs = Slabs("host", 0, 0, LAYOUT), Slabs("host", 0, 1, LAYOUT)
    for one in slabs:
        one.allocate(NONCE, 1000, 500)
    yield slabs
    for one in slabs:
        one.close()


def test_a_slab_is_armed_before_it_is_offered(pair: tuple[Slabs, Slabs]) -> None:
    own, _ = pair[0]._mine()
    for name, offset, size, armed in LAYOUT.regions():
        if name not in ("header", "control"):
            assert own.read(offset, size) == (b"\xff" if armed else b"\0") * size, name


def test_a_slab_for_which_there_is_no_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would give it, and end processes when it is used."""
    monkeypatch.setattr("pyallreduce.slab.available_bytes", lambda: 2 * LAYOUT.bytes - 1)
    slabs = Slabs("host", 0, 0, LAYOUT)
    with pytest.raises(SlabError, match="2 ranks need") as refused:
        slabs.allocate(NONCE, 1000, 500)
    assert refused.value.reason.code is Code.SLAB_MEMORY
    slabs.close()


def test_what_is_available_is_asked_of_the_kernel() -> None:
    there = available_bytes()
    assert there is not None
    assert 1 << 20 < there < 1 << 50


def test_slabs_of_one_job_open(pair: tuple[Slabs, Slabs]) -> None:
    offers = [one.offer(NONCE) for one in pair]
    for one in pair:
        one.open(offers, NONCE)
    assert pair[0].connect().state() == 0


def test_a_slab_of_another_job_is_refused(pair: tuple[Slabs, Slabs]) -> None:
    mine, other = (one.offer(NONCE) for one in pair)
    for offers, nonce in (
        ([mine, other], STALE),  # the header was written with another nonce
        ([mine, replace(other, nonce=STALE)], NONCE),
        ([mine, replace(mine, nonce=NONCE)], NONCE),  # rank 0's memory in rank 1's place
    ):
        with pytest.raises(SlabError) as caught:
            pair[0].open(offers, nonce)
        assert caught.value.reason.code is Code.HEADER_MISMATCH


def test_memory_that_is_gone_is_refused(pair: tuple[Slabs, Slabs]) -> None:
    mine, other = (one.offer(NONCE) for one in pair)
    with pytest.raises(SlabError) as caught:
        pair[0].open([mine, replace(other, start_time=other.start_time + 1)], NONCE)
    assert caught.value.reason.code is Code.SHARED_PAGE


def test_gpu_memory_is_freed_when_all_peers_have_let_go(pair: tuple[Slabs, Slabs]) -> None:
    """A peer may have opened what this rank offered, also where this rank could not open its."""
    mine, other = pair
    mine._target = "cuda"  # its rule, which is only about pages
    assert mine._others_left(0), "nobody has heard of it"
    offer = other.offer(NONCE)
    mine._offered = True
    assert not mine._others_left(0), "a peer that it has not heard of"
    mine._pages[1] = _C.SharedMemory.open(
        offer.pid, offer.start_time, offer.page_fd, offer.page_inode, 4096
    )
    assert not mine._others_left(0.05), "the peer has it mapped"
    assert other.let_go()
    assert mine._others_left(1)
    mine._pages.clear()
    mine.released = True
    assert mine._others_left(0), "all have said so"
    mine._target = "host"
