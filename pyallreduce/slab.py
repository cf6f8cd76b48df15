# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The slabs of a group: allocate, arm, export, open, prove by reading a nonce, close in order.

A slab is filled, then that is complete on the device, and only then it is exported.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import logging
import multiprocessing.util
import os
import struct
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyallreduce import _native
from pyallreduce.errors import CommunicatorClosed, PyallreduceError
from pyallreduce.facts import Target
from pyallreduce.reasons import Code, Reason
from pyallreduce.wire import HANDLE_BYTES, NONCE_BYTES, SlabOffer

if TYPE_CHECKING:
    from pyallreduce._C import DeviceMemory, Layout, Rank, SharedMemory, Watchdog

__all__ = ["RECORD_BYTES", "SlabError", "Slabs", "available_bytes"]

logger = logging.getLogger(__name__)

RECORD_BYTES = 4096
_SENTINEL_BYTE = 0xFF
_CONTROL = struct.Struct("<II")  # stop, generation: csrc/protocol/slab.h
_HEADER = struct.Struct(f"<8sIIQ{NONCE_BYTES}s")
_MAGIC = b"PYARSLAB"
# In the record page, behind the record: this rank has unmapped its peers' slabs.
_LEFT_OFFSET = 2048
_LEFT = b"\1"
# There, too: the generation that this rank waits to begin with its peers; 0 while it does not.
_WANTED_OFFSET = 2056
_WANTED = struct.Struct("<I")
_LEAVE_SECONDS = 2.0

# A rank that exits without close() leaves in good order all the same: its peers must not read its
# exit as a death.
_OPEN: weakref.WeakSet[Slabs] = weakref.WeakSet()


def _keep_for_ever(thing: object) -> None:
    """Until this process ends, and not only its interpreter: that would free it, and wait."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


@atexit.register
def _leave_all() -> None:
    for slabs in list(_OPEN):
        slabs.leave()


@functools.cache
def _leave_where_multiprocessing_ends(_pid: int) -> None:
    """Its children by fork and forkserver end by os._exit, which asks no atexit. They forget what
    was registered before their start: once in each process."""
    multiprocessing.util.Finalize(None, _leave_all, exitpriority=0)


def available_bytes() -> int | None:
    """What the kernel could give to new programs without swapping; None where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


class SlabError(PyallreduceError):
    """A step of sharing the slabs failed on this rank; `reason` is what the group is told."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Slabs:
    """This rank's slab and record page, and its mappings of everybody else's.

    Args:
        target: "cuda" or "host".
        device: CUDA device index of this process; ignored on the host target.
        rank: this rank; `layout.world` is the group's size.
    """

    def __init__(self, target: Target, device: int, rank: int, layout: Layout) -> None:
        self.layout = layout
        self._native = _native.load()
        self._target = target
        self._device = device
        self._rank = rank
        self._own: SharedMemory | DeviceMemory | None = None
        self._page: SharedMemory | None = None
        self._peers: dict[int, SharedMemory | DeviceMemory] = {}
        self._pages: dict[int, SharedMemory] = {}
        self._connected: Rank | None = None
        self._watchdog: Watchdog | None = None
        self._notice_ms = 0
        self._offered = False
        self.released = False  # somebody has proof that all peers have let go
        self._pid = os.getpid()

    def allocate(self, nonce: bytes, deadline_ms: int, notice_ms: int) -> None:
        """Allocate and arm this rank's slab and page, and start its watchdog.

        Raises:
            SlabError: SLAB_MEMORY.
        """
        try:
            self._page = self._native.SharedMemory(RECORD_BYTES)
            if self._target == "cuda":
                lead = self._lead(self._rank)
                self._own = self._native.DeviceMemory(self._device, self.layout.bytes, lead)
            else:
                self._refuse_more_than_there_is()
                self._own = self._native.SharedMemory(self.layout.bytes)
            self._notice_ms = notice_ms
            self.arm(1, deadline_ms)
            self._own.write(0, self._header(self._rank, nonce))
            self._watchdog = self._native.Watchdog(self._rank, self._page)
            _OPEN.add(self)
            _leave_where_multiprocessing_ends(os.getpid())
        except (RuntimeError, OSError) as error:
            detail = f"{self.layout.bytes} bytes: {error}"
            raise SlabError(Reason(Code.SLAB_MEMORY, detail)) from error

    def _refuse_more_than_there_is(self) -> None:
        """The kernel gives all that is asked for, and ends processes when it is used.

        Raises:
            OSError: the machine has not enough for all ranks.
        """
        there = available_bytes()
        wanted = self.layout.world * self.layout.bytes
        if there is not None and wanted > there:
            message = f"{self.layout.world} ranks need {wanted} bytes, and {there} are available"
            raise OSError(message)

    def arm(self, generation: int, deadline_ms: int) -> None:
        """Make every mailbox empty and begin a generation. No kernel of the group may run."""
        own, page = self._mine()
        for name, offset, size, armed in self.layout.regions():
            if name != "header":
                own.fill(offset, size, _SENTINEL_BYTE if armed else 0)
        own.write(self.layout.control, _CONTROL.pack(0, generation))
        self._native.arm_record(page, generation, deadline_ms, self._notice_ms)

    @property
    def inherited(self) -> bool:
        """Whether this process is a child of the one that these slabs belong to."""
        return os.getpid() != self._pid

    def memory(self) -> list[tuple[str, int]]:
        """What is in front of this rank's slab, and the slab's regions, in bytes."""
        regions = [(name, size) for name, _, size, _ in self.layout.regions()]
        return [("in front of it", self._lead(self._rank)), *regions]

    def stop(self, why: int) -> None:
        """Whatever runs in this rank's slab, or is replayed there, ends at once; `why` is one of
        `failure.Stop`."""
        own, _ = self._mine()
        control = own.read(self.layout.control, _CONTROL.size)
        _, generation = _CONTROL.unpack(control)
        own.write(self.layout.control, _CONTROL.pack(generation << 8 | why, generation))

    def set_deadline(self, deadline_ms: int) -> None:
        """Change how long a wait may last: waiting kernels see it too, and captured graphs."""
        _, page = self._mine()
        self._native.set_deadline(page, deadline_ms)

    def ended(self) -> tuple[int, str]:
        """The first peer whose process ended, and what is known of it; (-1, "") while all live."""
        return (-1, "") if self._watchdog is None else self._watchdog.ended()

    def leave(self) -> None:
        """Let go of the life lock: peers take what follows for an orderly end."""
        if self.inherited:
            return
        if self._page is not None:
            self._page.write(_WANTED_OFFSET, _WANTED.pack(0))
        if self._watchdog is not None:
            self._watchdog.close()

    def offer(self, nonce: bytes) -> SlabOffer:
        """What peers need to open this rank's slab and page.

        Raises:
            SlabError: IPC_EXPORT.
        """
        own, page = self._mine()
        self._offered = True
        pid, start_time, page_fd, page_inode, _ = page.offer()
        handle, slab_fd, slab_inode = bytes(HANDLE_BYTES), -1, 0
        try:
            if self._target == "cuda":
                handle = own.handle()  # type: ignore[union-attr]
            else:
                _, _, slab_fd, slab_inode, _ = own.offer()  # type: ignore[union-attr]
        except RuntimeError as error:
            raise SlabError(Reason(Code.IPC_EXPORT, str(error))) from error
        return SlabOffer(
            handle=handle,
            slab_bytes=self.layout.bytes,
            pid=pid,
            start_time=start_time,
            slab_fd=slab_fd,
            slab_inode=slab_inode,
            page_fd=page_fd,
            page_inode=page_inode,
            nonce=nonce,
        )

    def open(self, offers: Sequence[SlabOffer], nonce: bytes) -> None:
        """Map everybody's slab and page, and read each header through the mapping.

        Raises:
            SlabError: SHARED_PAGE, IPC_OPEN or HEADER_MISMATCH, with the peer's rank.
        """
        for peer, offer in enumerate(offers):
            if peer == self._rank:
                continue
            self._open_pages(peer, offer)
            expected = self._header(peer, nonce)
            try:
                seen = self._peers[peer].read(0, len(expected))
            except RuntimeError as error:
                raise SlabError(Reason(Code.IPC_OPEN, f"rank {peer}: {error}")) from error
            if seen != expected or offer.nonce != nonce:
                raise SlabError(Reason(Code.HEADER_MISMATCH, f"the slab of rank {peer}"))
            if self._watchdog is not None:
                self._watchdog.watch(peer, offer.pid, self._pages[peer])

    def connect(self) -> Rank:
        """The compiled rank over all slabs; they must stay open as long as it is used."""
        own, page = self._mine()
        slabs = [
            own.address if rank == self._rank else self._peers[rank].address
            for rank in range(self.layout.world)
        ]
        rest = (self._rank, self.layout, slabs, page.address)
        if self._target == "cuda":
            self._connected = self._native.CudaRank(self._device, *rest)
        else:
            self._connected = self._native.HostRank(*rest)
        return self._connected

    def quiet(self) -> Callable[[], bool]:
        """What says whether no record tells of a failure, and all peers live. Once `close()` has
        closed the pages it raises CommunicatorClosed."""
        self._mine()
        assert self._watchdog is not None  # it starts with the own slab
        # Bound once, not in every step.
        quiet: Callable[[], bool] = self._native.Quiet(self.record_pages(), self._watchdog).__call__
        return quiet

    def record_pages(self) -> list[SharedMemory]:
        """Every rank's record page as this process has it, in rank order."""
        _, own = self._mine()
        pages = {**self._pages, self._rank: own}
        if len(pages) < self.layout.world:
            raise self._gone()
        return [pages[rank] for rank in range(self.layout.world)]

    def want(self, generation: int) -> None:
        """Let the peers see that this rank waits for them to begin a generation; 0: it does not."""
        _, page = self._mine()
        page.write(_WANTED_OFFSET, _WANTED.pack(generation))

    def wanted(self) -> list[int]:
        """The generation that each rank waits to begin, in rank order; 0: none."""
        pages = self.record_pages()
        return [_WANTED.unpack(page.read(_WANTED_OFFSET, _WANTED.size))[0] for page in pages]

    def let_go(self) -> bool:
        """Unmap what belongs to others, and say so in the page. Safe to call twice.

        False if a call of another thread has not ended: nothing is unmapped then.
        """
        # Before the life lock: peers must not hear that this rank left while its kernels still run.
        if self._connected is not None and not self._connected.close():
            return False
        self.leave()
        for memory in self._peers.values():
            self._close(memory)
        self._peers.clear()
        if self._page is not None:
            self._page.write(_LEFT_OFFSET, _LEFT)
        return True

    def close(self) -> None:
        """Unmap what belongs to others, then free what is ours; safe to call twice.

        CUDA leaves it undefined to free memory that a peer has mapped. A peer that has not let go
        of ours in time, or that has died, keeps it: it is returned when this process ends. A forked
        child has nothing to let go of: it must not touch its parent's.
        """
        if self.inherited:
            return
        bereaved = bool(self.ended()[1])
        _OPEN.discard(self)
        if not self.let_go():
            self.keep()
            return
        if self._own is not None:
            if self._others_left(0 if bereaved else _LEAVE_SECONDS):
                self._close(self._own)
            else:
                logger.info("rank %d: a peer still maps this slab; kept until exit", self._rank)
                _keep_for_ever(self._own)
        for page in (*self._pages.values(), self._page):
            if page is not None:
                self._close(page)
        self._pages.clear()
        self._own = self._page = None

    def keep(self) -> None:
        """Leave in good order, and let all memory stay until this process ends: something still
        works in it."""
        self.leave()
        _OPEN.discard(self)
        _keep_for_ever(self)

    def __del__(self) -> None:
        """Of a communicator that nobody closed, or that failed on its way."""
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.close()

    def _others_left(self, seconds: float) -> bool:
        if self._target == "host":
            return True  # each mapping of a memfd keeps the memory for itself
        if self.released:
            return True
        if self._offered and len(self._pages) < self.layout.world - 1:
            return False  # who it could not hear of may have opened it
        deadline = time.monotonic() + seconds
        while not all(page.read(_LEFT_OFFSET, 1) == _LEFT for page in self._pages.values()):
            if time.monotonic() > deadline:
                return False
            os.sched_yield()
        return True

    def _mine(self) -> tuple[SharedMemory | DeviceMemory, SharedMemory]:
        own, page = self._own, self._page
        if own is None or page is None:
            raise self._gone()
        return own, page

    def _gone(self) -> CommunicatorClosed:
        return CommunicatorClosed(f"rank {self._rank}: its slab is not open, or not any more")

    def _lead(self, rank: int) -> int:
        # csrc/layout.h says why; on the host target no link is chosen.
        return rank * self.layout.apart if self._target == "cuda" else 0

    def _header(self, rank: int, nonce: bytes) -> bytes:
        return _HEADER.pack(_MAGIC, rank, self.layout.world, self.layout.bytes, nonce)

    def _open_pages(self, peer: int, offer: SlabOffer) -> None:
        shared = self._native.SharedMemory
        who = (offer.pid, offer.start_time)
        try:
            self._pages[peer] = shared.open(*who, offer.page_fd, offer.page_inode, RECORD_BYTES)
            if self._target == "host":
                self._peers[peer] = shared.open(
                    *who, offer.slab_fd, offer.slab_inode, offer.slab_bytes
                )
        except OSError as error:
            raise SlabError(Reason(Code.SHARED_PAGE, f"rank {peer}: {error}")) from error
        if self._target == "cuda":
            try:
                self._peers[peer] = self._native.DeviceMemory.open(
                    self._device, offer.slab_bytes, offer.handle, self._lead(peer)
                )
            except RuntimeError as error:
                raise SlabError(Reason(Code.IPC_OPEN, f"rank {peer}: {error}")) from error

    @staticmethod
    def _close(memory: SharedMemory | DeviceMemory) -> None:
        try:
            memory.close()
        except RuntimeError as error:
            # A lost device: the driver takes the memory back with the context.
            logger.warning("closing a slab: %s", error)
