# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Where the ranks wait for each other before they begin a new generation.

An exchange of frames would wait for a rank that has closed, or that is still elsewhere, until its
deadline, and the group could not be used again. Over the record pages a closing is known at once,
and nothing is lost by giving up.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from pyallreduce.errors import AllReduceAborted, CommunicatorClosed, ExchangeTimeout
from pyallreduce.failure import error_from
from pyallreduce.records import read_records

if TYPE_CHECKING:
    from pyallreduce.slab import Slabs

__all__ = ["meet"]

_LOOK_SECONDS = 0.001


def meet(slabs: Slabs, rank: int, generation: int, seconds: float) -> None:
    """Return when every rank wants this generation.

    Raises:
        AllReduceAborted: a rank's process has ended, or it has closed its communicator.
        ExchangeTimeout: some rank did not come. All of them may try again.
    """
    deadline = time.monotonic() + seconds
    away = set(range(slabs.layout.world))  # all the while: others come, and give up
    slabs.want(generation)
    try:
        while True:
            missing = _missing(slabs, generation)
            # Also where nobody is missing: who has ended since it came wants that generation still.
            _raise_if_alone(slabs, rank)
            if not missing:
                return
            away &= missing
            if time.monotonic() > deadline and _gives_up(slabs, rank, generation):
                raise _timeout(rank, min(away or missing), seconds)
            time.sleep(_LOOK_SECONDS)
    except BaseException:
        with contextlib.suppress(CommunicatorClosed):  # closing has withdrawn it
            slabs.want(0)  # who comes later must not take this rank for one that waits
        raise


def _missing(slabs: Slabs, generation: int) -> set[int]:
    return {peer for peer, wanted in enumerate(slabs.wanted()) if wanted != generation}


def _gives_up(slabs: Slabs, rank: int, generation: int) -> bool:
    """Withdraw, unless everybody else has come by now: they may have seen this rank, and gone on.

    Memory order: a rank writes its word, then reads the others'; nothing but the time between two
    calls from Python makes the one precede the other, and two that give up in one instant do not
    see a third that comes in it. Whoever goes on alone so is ended by the exchange's deadline. What
    orders a generation's memory is that exchange, not these words.
    """
    slabs.want(0)
    if _missing(slabs, generation) - {rank}:
        return True
    slabs.want(generation)
    return False


def _timeout(rank: int, peer: int, seconds: float) -> ExchangeTimeout:
    message = (
        f"rank {rank}: rank {peer} did not come to a new generation within {seconds:g} s. Look at "
        "its log; all ranks must call recover(), or make their next call, and may do so again."
    )
    return ExchangeTimeout(message, rank=rank, peer=peer)


def _raise_if_alone(slabs: Slabs, rank: int) -> None:
    records = read_records(slabs)
    if (death := slabs.ended())[1]:  # whatever else the records tell
        raise error_from(rank, records, death)
    closed = [peer for peer in range(len(records)) if records[rank].absent >> peer & 1]
    if closed:
        message = (
            f"rank {rank}: no new generation can begin: rank {closed[0]} has closed its "
            "communicator, as its program does when it ends, by an error too: see what it says "
            "itself."
        )
        raise AllReduceAborted(message, rank=rank, peer=closed[0])
