# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Every rank's record of a generation, and what they say of its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyallreduce import _native
from pyallreduce.errors import CommunicatorClosed
from pyallreduce.failure import Stop, stop_of

if TYPE_CHECKING:
    from pyallreduce._C import Record
    from pyallreduce.slab import Slabs

__all__ = [
    "find_cause",
    "read_records",
    "tell_of_a_refusal_alone",
    "tell_of_an_abort",
    "tell_of_generation",
]

_OF_A_REFUSAL = {Stop.NONE, Stop.REFUSED, Stop.PEER}
_NAME_NO_CAUSE = {Stop.NONE, Stop.PEER, Stop.HOST}
_GENERATION_MASK = 0xFFFFFF  # csrc/protocol/slab.h: a stop word is generation << 8 | reason
_WATCHDOG_SECONDS = 0.1  # ten of its looks


def read_records(slabs: Slabs) -> list[Record]:
    """What every rank's record says now, in rank order.

    Raises:
        CommunicatorClosed: the pages are not open any more.
    """
    record_at = _native.load().Record.at
    return [record_at(page) for page in slabs.record_pages()]


def tell_of_an_abort(records: Sequence[Record]) -> bool:
    """Whether any rank ended a call for another reason than a refusal."""
    return not _stops(records) <= _OF_A_REFUSAL


def tell_of_a_refusal_alone(records: Sequence[Record]) -> bool:
    """Whether some rank refused a call, and nothing else went wrong."""
    stops = _stops(records)
    return Stop.REFUSED in stops and stops <= _OF_A_REFUSAL


def tell_of_generation(records: Sequence[Record], generation: int) -> bool:
    """Whether any call of this generation was ended: a state word has its number."""
    return any(
        record.state and record.state >> 8 == generation & _GENERATION_MASK for record in records
    )


def find_cause(slabs: Slabs, seen: list[Record]) -> tuple[list[Record], tuple[int, str]]:
    """Records that say what ended the generation, and who died, where that did; else (-1, "").

    A peer's stop word may be here before its record says why it was raised, and a peer's watchdog
    may have been faster than ours: look again until something names a cause. `seen` is what was
    read when the failure was found. A state stays until the next generation begins: where one has
    changed, another thread has recovered meanwhile, and the rest of the records tell of nothing;
    where one has closed, nothing more can be read.
    """
    deadline = time.monotonic() + _WATCHDOG_SECONDS
    while True:
        stops = _stops(seen)
        if not stops <= _NAME_NO_CAUSE | {Stop.REFUSED}:
            return seen, (-1, "")
        death = slabs.ended()  # behind a refusal, too: nobody starts anew with a dead rank
        if death[1] or Stop.REFUSED in stops or time.monotonic() > deadline:
            return seen, death
        time.sleep(0.001)
        try:
            now = read_records(slabs)
        except CommunicatorClosed:
            return seen, death
        if any(was.state not in (0, is_.state) for was, is_ in zip(seen, now, strict=True)):
            return seen, death
        seen = now


def _stops(records: Sequence[Record]) -> set[Stop]:
    return {stop_of(record.state) for record in records}
