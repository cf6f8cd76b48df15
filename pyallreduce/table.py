# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The dispatch table: which algorithm and launch shape carries messages up to a size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from pyallreduce.errors import PyallreduceError

__all__ = [
    "MAX_BLOCKS",
    "MAX_BYTES",
    "MAX_ENTRIES",
    "MAX_LANES",
    "Carrier",
    "Entry",
    "Table",
    "TableError",
]

Carrier = Literal["one_shot", "two_shot", "nccl"]

MAX_ENTRIES = 64
MAX_BYTES = 2**48
MAX_BLOCKS = 1024
MAX_LANES = 512  # csrc/protocol/target.h, kMaxLanes
_WARP = 32


class TableError(PyallreduceError, ValueError):
    """A table that no rank may use; the message says why."""


@dataclass(frozen=True)
class Entry:
    """Messages of up to `up_to` bytes that no earlier entry has.

    `blocks` and `lanes` are the largest grid and the width of a block; 0 leaves them to the rule of
    `policy.py`. "nccl" stands for the fallback (gloo on the CPU).
    """

    up_to: int
    algorithm: Carrier
    blocks: int = 0
    lanes: int = 0


@dataclass(frozen=True)
class Table:
    """Entries by rising size; the last one also holds for everything above it.

    Raises:
        TableError: no entries or too many, sizes that do not rise, or a launch that can't be made.
    """

    entries: tuple[Entry, ...]
    source: Literal["shipped", "tuned"] = "shipped"

    def __post_init__(self) -> None:
        if not 1 <= len(self.entries) <= MAX_ENTRIES:
            raise TableError(f"{len(self.entries)} entries, expected 1 to {MAX_ENTRIES}")
        above = 0
        for entry in self.entries:
            _check(entry, above)
            above = entry.up_to

    def entry(self, nbytes: int) -> Entry:
        """The entry that a message of this size falls under."""
        return next((e for e in self.entries if nbytes <= e.up_to), self.entries[-1])

    @property
    def leaves(self) -> bool:
        """Whether some messages are left to NCCL."""
        return any(entry.algorithm == "nccl" for entry in self.entries)

    def digest(self) -> bytes:
        """8 bytes over the entries: equal tables have equal digests."""
        rows = [(e.up_to, e.algorithm, e.blocks, e.lanes) for e in self.entries]
        return hashlib.blake2b(repr(rows).encode(), digest_size=8).digest()


def _check(entry: Entry, above: int) -> None:
    numbers = (entry.up_to, entry.blocks, entry.lanes)
    if any(type(number) is not int for number in numbers):
        raise TableError(f"{entry}: expected integers")
    if entry.algorithm not in get_args(Carrier):
        raise TableError(f"{entry}: expected an algorithm of {', '.join(get_args(Carrier))}")
    if not above < entry.up_to <= MAX_BYTES:
        raise TableError(f"{entry}: expected more than {above} bytes, at most {MAX_BYTES}")
    if not 0 <= entry.blocks <= MAX_BLOCKS:
        raise TableError(f"{entry}: expected 0 to {MAX_BLOCKS} blocks")
    if not 0 <= entry.lanes <= MAX_LANES or entry.lanes % _WARP:
        raise TableError(f"{entry}: expected lanes of 0, {_WARP}, ... up to {MAX_LANES}")
