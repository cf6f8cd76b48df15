# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Links that misbehave: what a rank writes to a peer goes to private memory, and from there on.

The rank is given the private memory's address in the place of its mapping of the peer's slab, on
both targets; nothing of the product knows. A thread carries words over, or not, as `mode` says.
It forgets a word before it delivers it: the protocol writes a word anew only when the peer has it.
And it delivers a word once, as NVLink does: `SharedMemory.write` sees to that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyallreduce import _C
from pyallreduce.slab import Slabs

__all__ = ["Link", "install"]

_SENTINEL = np.uint32(0xFFFFFFFF)
_PAUSE_S = 0.0002
_TORN_S, _DELAYED_S = 0.002, 0.02


class Link:
    """One directed edge, as a stand-in for the peer's memory in `Slabs`. `mode` may change at any
    time: "sound", "dropped", "mirrored", "corrupted", "torn" or "delayed"."""

    def __init__(self, real: Any, private: Any, layout: _C.Layout, mode: str) -> None:
        self.mode = mode
        self._real = real
        self._private = private
        self._layout = layout
        self._closing = threading.Event()
        for _, offset, size, armed in layout.regions():
            private.fill(offset, size, 0xFF if armed else 0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self) -> int:
        return int(self._private.address)

    def read(self, offset: int, nbytes: int) -> bytes:
        return bytes(self._real.read(offset, nbytes))

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._private.close()
        self._real.close()

    def _run(self) -> None:
        mailboxes = [(o, s) for _, o, s, armed in self._layout.regions() if armed]
        start, end = mailboxes[0][0], sum(mailboxes[-1])
        while not self._closing.is_set():
            self._carry(start, end, _SENTINEL)
            self._carry(self._layout.control, self._layout.control + 4, np.uint32(0))
            time.sleep(_PAUSE_S)

    def _carry(self, start: int, end: int, empty: np.uint32) -> None:
        """Carry over the words in [start, end) that are not `empty`."""
        mode = self.mode
        words = np.frombuffer(self._private.read(start, end - start), dtype=np.uint32)
        written = np.flatnonzero(words != empty)
        if mode == "mirrored" or not len(written):
            return
        runs = np.split(written, np.flatnonzero(np.diff(written) != 1) + 1)
        for run in runs:
            blank = np.full(len(run), empty, dtype=np.uint32)
            self._private.write(start + 4 * int(run[0]), blank.tobytes())
        if mode == "dropped":
            return
        if mode == "delayed":
            time.sleep(_DELAYED_S)
        flip = np.uint32(0x10 if mode == "corrupted" else 0)
        for part in (0, 1) if mode == "torn" else (None,):
            if part == 1:
                time.sleep(_TORN_S)
            for run in runs:
                self._deliver(start, run, words[run] ^ flip, part)

    def _deliver(self, start: int, run: Any, words: Any, part: int | None) -> None:
        """All words of a run together, or every other one by itself."""
        if part is None:
            self._real.write(start + 4 * int(run[0]), words.tobytes())
            return
        for place, word in zip(run, words, strict=True):
            if place % 2 == part:
                self._real.write(start + 4 * int(place), word.tobytes())


def install(peers: Sequence[int], mode: str) -> tuple[list[Link], Callable[[], None]]:
    """From now on this process's slabs reach these peers through links; undo by calling the second
    value."""
    links: list[Link] = []
    original = Slabs.open

    def open_with_links(slabs: Slabs, *arguments: Any) -> None:
        original(slabs, *arguments)
        for peer in peers:
            real = slabs._peers[peer]
            if isinstance(real, _C.SharedMemory):
                private: Any = _C.SharedMemory(slabs.layout.bytes)
            else:
                private = _C.DeviceMemory(slabs._device, slabs.layout.bytes)
            link = Link(real, private, slabs.layout, mode)
            slabs._peers[peer] = link  # type: ignore[assignment]
            links.append(link)

    def undo() -> None:
        Slabs.open = original  # type: ignore[method-assign]

    Slabs.open = open_with_links  # type: ignore[method-assign]
    return links, undo
