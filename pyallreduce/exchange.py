# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Collectives of the control plane: fixed-size frames over the caller's group, on the CPU.

Every step has a deadline. A step that fails leaves the group's ranks in different places: it
raises, and the group must not be used again.
"""

from __future__ import annotations

import datetime

import torch
import torch.distributed as dist

from pyallreduce.errors import ExchangeTimeout, NotAMember
from pyallreduce.wire import FRAME_BYTES

__all__ = ["Exchange", "backends_of"]

Group = dist.ProcessGroup


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
        self._timeout = datetime.timedelta(milliseconds=timeout_ms)
        self._carrier = self.group
        if "cpu" not in backends_of(self.group):
            self._carrier = self.companion("gloo")

    def companion(self, backend: str) -> Group:
        """A group of the same ranks with another backend; all of them must ask for it.

        Raises:
            ExchangeTimeout: some rank did not, in time.
        """
        try:
            group: Group = dist.new_group(
                dist.get_process_group_ranks(self.group),
                timeout=self._timeout if backend == "gloo" else None,
                backend=backend,
                use_local_synchronization=True,
            )
        except RuntimeError as error:
            raise self._late(f"a {backend} group of the same ranks", error) from error
        return group

    def gather(self, frame: bytes, step: str) -> list[bytes]:
        """Everybody's frame, in rank order.

        Raises:
            ExchangeTimeout: some rank did not take part in time.
        """
        mine = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
        everybody = [torch.empty(FRAME_BYTES, dtype=torch.uint8) for _ in range(self.world)]
        try:
            work = dist.all_gather(everybody, mine, group=self._carrier, async_op=True)
            work.wait(self._timeout)
        except RuntimeError as error:
            raise self._late(f"the exchange `{step}`", error) from error
        return [t.numpy().tobytes() for t in everybody]

    def _late(self, what: str, error: RuntimeError) -> ExchangeTimeout:
        return ExchangeTimeout(
            f"rank {self.rank}: {what} was not completed within "
            f"{self._timeout.total_seconds():g} s ({str(error).splitlines()[0]}). "
            "Look at the other ranks' logs; this process group can't be used any more."
        )
