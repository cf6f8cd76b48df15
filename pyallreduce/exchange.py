# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of fixed size among the ranks of the caller's group, on the CPU.

They go from rank to rank, not by a collective: who does not come is known by name. Every step has a
deadline. A step that fails leaves the group's ranks in different places: it raises, and the group
must not be used again.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pyallreduce.errors import ExchangeTimeout, NotAMember
from pyallreduce.wire import FRAME_BYTES

__all__ = ["Exchange", "backends_of"]

Group = dist.ProcessGroup

_TAG = 0x70796172  # "pyar": the group may be in use for other messages
# The rank that has died, and a sentence on it; (-1, "") while none is known to have.
_Obituary = Callable[[], tuple[int, str]]
_OBITUARY_SECONDS = 0.1  # ten looks of a watchdog
_ALL_OF_IT = 0.99  # of a deadline: waits are given in whole milliseconds


def backends_of(group: Group) -> dict[str, str]:
    """Device type to backend name, for example {"cpu": "gloo", "cuda": "nccl"}."""
    pairs = str(dist.get_backend_config(group)).split(",")
    return dict(pair.split(":", 1) for pair in pairs if ":" in pair)


class Exchange:
    """Gathers frames among the ranks of `group`.

    A group that serves CPU tensors (gloo, or a mixed "cpu:gloo,cuda:nccl") carries them itself.
    For one that does not (NCCL alone) a gloo group of the same ranks is made; its members must all
    be here.

    Raises:
        NotAMember: this process is not in the group.
    """

    def __init__(self, group: Group | None, timeout_ms: int) -> None:
        if not dist.is_initialized():
            message = "torch.distributed is not initialised: call init_process_group first"
            raise NotAMember(message)
        chosen = dist.group.WORLD if group is None else group
        if not isinstance(chosen, Group) or dist.get_rank(chosen) < 0:
            message = f"this process (global rank {dist.get_rank()}) is no member of {group}"
            raise NotAMember(message)
        self.group: Group = chosen
        self.rank = dist.get_rank(self.group)
        self.world = dist.get_world_size(self.group)
        self._global_ranks = dist.get_process_group_ranks(self.group)
        self._timeout_s = timeout_ms / 1e3
        self.obituary: _Obituary | None = None  # asked where a step fails
        self._failure: ExchangeTimeout | None = None  # the first: it explains all later ones
        self._carrier = self.group
        if "cpu" not in backends_of(self.group):
            self._carrier = self.companion("gloo")

    @property
    def failure(self) -> ExchangeTimeout | None:
        """How this exchange was lost, a new one each time it is asked; None while it is of use."""
        return None if self._failure is None else self._failure.copy()

    def companion(self, backend: str) -> Group:
        """A group of the same ranks with another backend; all of them must ask for it.

        Raises:
            ExchangeTimeout: some rank did not, in time.
        """
        timeout = datetime.timedelta(seconds=self._timeout_s)
        since = time.monotonic()
        try:
            group: Group = dist.new_group(
                self._global_ranks,
                timeout=timeout if backend == "gloo" else None,
                backend=backend,
                use_local_synchronization=True,
            )
        except RuntimeError as error:
            step = f"making of a {backend} group of the same ranks"
            raise self._failed(step, _Loss(-1, time.monotonic() - since, error)) from error
        return group

    def gather(self, frame: bytes, step: str) -> list[bytes]:
        """Everybody's frame, in rank order.

        Raises:
            ExchangeTimeout: some rank did not take part in time, in this step or an earlier one;
                `peer` is the one that was missed first. Where a peer got further than this rank,
                and left when it missed another, that one is named.
        """
        if self.failure is not None:
            raise self.failure
        since = time.monotonic()
        mine = bytearray(frame)
        everybody = [bytearray(FRAME_BYTES) for _ in range(self.world)]
        everybody[self.rank][:] = mine
        transfers = _Transfers(self, mine, everybody, since)
        # Also when a peer is lost: the others are to hear from this rank, and blame that one.
        for peer, work in transfers.started(self._timeout_s):
            left = max(0.001, since + self._timeout_s - time.monotonic())
            try:
                work.wait(datetime.timedelta(seconds=left))
            except RuntimeError as error:
                transfers.lose(peer, error)
        if transfers.lost:
            first = transfers.lost[0]  # what follows it may be its consequence
            self._failure = self._failed(f"exchange `{step}`", first)
            raise self._failure.copy() from first.error
        return [bytes(buffer) for buffer in everybody]

    def start(self, call: Callable[..., Any], tensor: torch.Tensor, peer: int) -> Any:
        """One transfer with a peer, under way: `call` is dist.isend or dist.irecv."""
        return call(tensor, self._global_ranks[peer], group=self._carrier, tag=_TAG)

    def _failed(self, step: str, loss: _Loss) -> ExchangeTimeout:
        late = loss.after_s > _ALL_OF_IT * self._timeout_s
        who = "some rank" if loss.peer < 0 else f"rank {loss.peer}"
        peer, why = self._last_words(0 if late else _OBITUARY_SECONDS)
        if not why:
            peer = loss.peer
            cause, *_ = str(loss.error).partition(". This is typically")  # gloo's guesses follow
            lost = cause if peer < 0 else f"{who} was lost after {loss.after_s:.1f} s ({cause})"
            why = f"{who} did not come within {self._timeout_s:g} s" if late else lost
        message = (
            f"rank {self.rank}: the {step} failed: {why}. "
            "Look at the other ranks' logs; this process group can't be used any more."
        )
        return ExchangeTimeout(message, rank=self.rank, peer=peer)

    def _last_words(self, seconds: float) -> tuple[int, str]:
        """The obituary, if there is one soon: a broken connection is seen before it is written."""
        if self.obituary is None:
            return -1, ""
        deadline = time.monotonic() + seconds
        while not (found := self.obituary())[1] and time.monotonic() < deadline:
            time.sleep(0.001)
        return found


@dataclass(frozen=True)
class _Loss:
    """Which peer was missed, seconds behind the step's begin, and what torch says of it."""

    peer: int
    after_s: float
    error: Exception


class _Transfers:
    """One step's frames to and from all peers; `lost` are the peers missed, the first one first."""

    def __init__(
        self, exchange: Exchange, mine: bytearray, everybody: list[bytearray], since: float
    ) -> None:
        self.lost: list[_Loss] = []
        self._exchange = exchange
        self._mine = mine
        self._everybody = everybody
        self._since = since
        self._works: list[tuple[int, Any]] = []
        self._peer = exchange.rank  # with whom a transfer is being started

    def lose(self, peer: int, error: Exception) -> None:
        self.lost.append(_Loss(peer, time.monotonic() - self._since, error))

    def started(self, seconds: float) -> list[tuple[int, Any]]:
        """The peers and the transfers with them that are under way.

        In a thread: where gloo connects when it is first used (TORCH_GLOO_LAZY_INIT), starting one
        waits for the peer, as long as the group's own timeout allows. And a mode of the caller's
        that makes tensors without memory (FakeTensorMode) is its thread's alone.
        """
        thread = threading.Thread(target=self._start, name="pyallreduce-exchange", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had
            self._start()
            return self._works
        thread.join(seconds)
        if thread.is_alive():
            self.lose(self._peer, RuntimeError("it can't be connected to"))
        return list(self._works)

    def _start(self) -> None:
        for peer in range(self._exchange.world):
            if peer == self._exchange.rank:
                continue
            self._peer = peer
            for call, buffer in ((dist.irecv, self._everybody[peer]), (dist.isend, self._mine)):
                try:
                    tensor = torch.frombuffer(buffer, dtype=torch.uint8)
                    self._works.append((peer, self._exchange.start(call, tensor, peer)))
                except Exception as error:  # a ValueError, where the group has been destroyed
                    self.lose(peer, error)
