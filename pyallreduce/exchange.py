# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of fixed size among the ranks of the caller's group, on the CPU.

They go from rank to rank, not by a collective: who does not come is known by name. Every step has a
deadline. A step that fails leaves the group's ranks in different places: it raises, and the group
must not be used again.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
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


def _nobody() -> tuple[int, str]:
    return -1, ""


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
        self.obituary: _Obituary = _nobody  # asked where a connection breaks
        self._carrier = self.group
        if "cpu" not in backends_of(self.group):
            self._carrier = self.companion("gloo")

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
            raise self._failed(step, -1, since, error) from error
        return group

    def gather(self, frame: bytes, step: str) -> list[bytes]:
        """Everybody's frame, in rank order.

        Raises:
            ExchangeTimeout: some rank did not take part in time; `peer` is the first such rank.
        """
        since = time.monotonic()
        mine = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
        everybody = [torch.empty(FRAME_BYTES, dtype=torch.uint8) for _ in range(self.world)]
        everybody[self.rank].copy_(mine)
        lost: dict[int, RuntimeError] = {}
        # Also when a peer is lost: the others are to hear from this rank, and blame that one.
        for peer, work in self._started(mine, everybody, lost):
            left = max(0.001, since + self._timeout_s - time.monotonic())
            try:
                work.wait(datetime.timedelta(seconds=left))
            except RuntimeError as error:
                lost.setdefault(peer, error)
        if lost:
            peer, first = next(iter(lost.items()))  # what follows it may be its consequence
            raise self._failed(f"exchange `{step}`", peer, since, first) from first
        return [t.numpy().tobytes() for t in everybody]

    def _started(
        self, mine: torch.Tensor, everybody: list[torch.Tensor], lost: dict[int, RuntimeError]
    ) -> list[tuple[int, Any]]:
        """The transfers with each peer, under way; `lost` are those whose connection is broken."""
        works = []
        for peer, number in enumerate(self._global_ranks):
            if peer == self.rank:
                continue
            for start, tensor in ((dist.irecv, everybody[peer]), (dist.isend, mine)):
                try:
                    works.append((peer, start(tensor, number, group=self._carrier, tag=_TAG)))
                except RuntimeError as error:
                    lost.setdefault(peer, error)
        return works

    def _failed(self, step: str, peer: int, since: float, error: RuntimeError) -> ExchangeTimeout:
        who = "some rank" if peer < 0 else f"rank {peer}"
        took = time.monotonic() - since
        if took > _ALL_OF_IT * self._timeout_s:
            why = f"{who} did not come within {self._timeout_s:g} s"
        else:
            dead, why = self._last_words()
            peer = dead if why else peer
            cause, *_ = str(error).partition(". This is typically")  # gloo's guesses follow
            why = why or f"{who} was lost after {took:.1f} s ({cause})"
        message = (
            f"rank {self.rank}: the {step} failed: {why}. "
            "Look at the other ranks' logs; this process group can't be used any more."
        )
        return ExchangeTimeout(message, rank=self.rank, peer=peer)

    def _last_words(self) -> tuple[int, str]:
        """The obituary, if there is one soon: a broken connection is seen before it is written."""
        deadline = time.monotonic() + _OBITUARY_SECONDS
        while not (found := self.obituary())[1] and time.monotonic() < deadline:
            time.sleep(0.001)
        return found
