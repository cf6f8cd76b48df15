# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""A Communicator in the place where vLLM and SGLang keep their own custom all-reduce (`ca_comm`).

Both engines ask that object, before every all-reduce of the tensor-parallel group, whether it takes
the tensor, and go on to their next choice where it does not.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeGuard

import torch

from pyallreduce import topology
from pyallreduce.communicator import Communicator
from pyallreduce.config import Config
from pyallreduce.reasons import Code, Reason

__all__ = [
    "SlotAdapter",
    "check_all",
    "check_behind_the_gpu",
    "is_broken",
    "leave_all",
    "open_slot",
    "settle_all",
    "start_step",
    "tell",
    "tell_nccl",
]

logger = logging.getLogger(__name__)

_TAGS = 1 << 31
_CHOSEN = {Code.FORCED_NCCL, Code.SINGLE_RANK}  # by the user: no cause for a warning

# Found, or stated by the user.
_BROKEN = {
    Code.NCCL_P2P_DISABLED,
    Code.P2P_WRITE_LOST,
    Code.P2P_PRIVATE_MIRROR,
    Code.P2P_CORRUPT,
    Code.KERNEL_TIMEOUT,
}

# Weak: a slot that its engine has dropped holds nothing. No WeakSet, since every step asks for all.
_open: list[weakref.ref[SlotAdapter]] = []
_first_broken: list[Reason] = []


class SlotAdapter:
    """The contract of the slot: what an engine reads and calls, of any release that is supported.

    Waits are patient from here until `settle()`: ranks load, compile and warm up at their own pace.

    Each call is tagged with its place since the start of the step, or of the capture that recorded
    it. The tag is a number that all ranks count alike, so that a rank which skips a call, or which
    replays another graph, is told at the next step; inside a graph it is a constant.
    """

    # Read by vLLM 0.31 and later where a model would use collectives that are not here.
    mnnvl_lamport_ag_multicast_ptr = 0
    fully_connected = False

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator
        self._place = 0
        self._patience: ExitStack | None = ExitStack()
        self._patience.enter_context(communicator.patience())
        self._ref = weakref.ref(self, _forget)
        _open.append(self._ref)

    @property
    def disabled(self) -> bool:
        """Whether the engine must not ask; true once closed."""
        return self.communicator.closed

    def should_custom_ar(self, x: torch.Tensor) -> bool:
        """Whether `x` is taken: by its dtype, layout, device and size, and by whether gradients are
        recorded for it, which all ranks share.

        A size is declined only where the table in force gives it to NCCL: one that `pyallreduce
        tune` measured, never a shipped one, and none in batch-invariant mode. One row may then be
        summed in two orders, by the size of the batch around it.
        """
        return self.communicator.accepts(x)

    def custom_all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, as a new tensor.

        Raises:
            AllReduceAborted, CallMismatch: this call or an earlier one failed.
        """
        return self.all_reduce(x)

    def all_reduce(
        self, x: torch.Tensor, *, out: torch.Tensor | None = None, registered: bool = False
    ) -> torch.Tensor:
        """As above, into `out` if given. No memory is ever registered: `registered` is ignored.

        A new tensor has the strides that `empty_like` gives it: a compiled graph counts on them.
        """
        del registered
        if out is None and not x.is_contiguous():
            out = torch.empty_like(x)
        tag, self._place = self._place, (self._place + 1) % _TAGS
        result: torch.Tensor = self.communicator.all_reduce(x, out=out, tag=tag)
        return result

    def custom_all_gather(self, *_: object, **__: object) -> None:
        """Declined: the engine has another way."""

    def custom_reduce_scatter(self, *_: object, **__: object) -> None:
        """Declined: the engine has another way."""

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Around graph captures and their warm-up: patient, and nothing to register at the end."""
        self.start_step()
        with self.communicator.patience():
            yield

    def start_step(self) -> None:
        """Every rank is at the start of a step."""
        self._place = 0

    def settle(self) -> None:
        """The engine has warmed up: from now on a wait has the usual deadline."""
        if self._patience is not None:  # asked here too: SGLang settles in every step
            self._end_patience()
        self.communicator.settle()

    def check(self) -> None:
        """Raise what went wrong on any rank; call it behind the synchronisation of a step."""
        self.communicator.check()

    def leave(self) -> None:
        """This process is about to end: who waits for it hears so at once."""
        self.communicator.leave()

    def close(self) -> None:
        """Let go of the shared memory; safe to call twice."""
        _forget(self._ref)
        self._end_patience()
        self.communicator.close()

    def _end_patience(self) -> None:
        patience, self._patience = self._patience, None
        if patience is not None:
            patience.close()


def open_slot(group: Any, device: Any, fallback_group: Any) -> SlotAdapter | Reason:
    """A SlotAdapter, or the reason why there is none.

    Every rank of `group` must call it, and all get the same answer. `fallback_group` spares the
    group's NCCL twin, which an engine has already.

    Raises:
        BackendUnavailable: PYALLREDUCE_BACKEND=native, and native cannot be had.
        ConfigError: a PYALLREDUCE_* variable is unknown or out of range.
        ExchangeTimeout: a rank did not come; the group is then of no more use.
    """
    with _unannounced():
        communicator = Communicator(
            group, device, config=Config.from_env(), fallback_group=fallback_group
        )
    if communicator.decision.backend == "native":
        return SlotAdapter(communicator)
    communicator.close()
    return communicator.decision.reason


def is_broken(opened: SlotAdapter | Reason) -> TypeGuard[Reason]:
    """Whether `opened` is the reason why any other's peer-to-peer would hang or lie too, or the
    user says so, whatever else is the reason."""
    return isinstance(opened, Reason) and (opened.code in _BROKEN or topology.nccl_p2p_disabled())


def tell_nccl(opened: SlotAdapter | Reason) -> SlotAdapter | Reason:
    """Where peer-to-peer is broken, what NCCL starts from now on does without it: it reads its
    variable when it starts.

    Returns:
        `opened`; of a later group in this process, which finds our variable, what the first found.
    """
    if not is_broken(opened):
        return opened
    if not _first_broken:
        _first_broken.append(opened)
    os.environ["NCCL_P2P_DISABLE"] = "1"
    return _first_broken[0] if opened.code is Code.NCCL_P2P_DISABLED else opened


def tell(logger: logging.Logger, group: str, opened: SlotAdapter | Reason, *others: str) -> None:
    """One line for a group: who carries its all-reduces (`others` in our stead), and why."""
    if isinstance(opened, SlotAdapter):
        decision = opened.communicator.decision
        where, table = decision.reason.detail, decision.table[0]
        logger.info("Group '%s': pyallreduce carries the all-reduces (%s); %s", group, where, table)
    else:
        level = logging.INFO if opened.code in _CHOSEN else logging.WARNING
        who = " and ".join(filter(None, [", ".join(others[:-1]), others[-1]]))
        verb = "carries" if len(others) == 1 else "carry"
        logger.log(level, "Group '%s': %s %s the all-reduces. %s", group, who, verb, opened)


@contextmanager
def _unannounced() -> Iterator[None]:
    """Within, a communicator does not tell its decision: `tell` does, in the engine's own log."""
    ours = logging.getLogger("pyallreduce.communicator")
    ours.addFilter(_nothing)
    try:
        yield
    finally:
        ours.removeFilter(_nothing)


def _nothing(_record: logging.LogRecord) -> bool:
    return False


def _forget(ref: weakref.ref[SlotAdapter]) -> None:
    if ref in _open:
        _open.remove(ref)


def _slots() -> list[SlotAdapter]:
    return [slot for ref in tuple(_open) if (slot := ref()) is not None]


def start_step() -> None:
    """A step starts, on every rank, in every open slot of this process."""
    for adapter in _slots():
        adapter.start_step()


def settle_all() -> None:
    """The engine has warmed up."""
    for adapter in _slots():
        adapter.settle()


def leave_all() -> None:
    """This process is about to end, whatever comes of this."""
    for adapter in _slots():
        try:
            adapter.leave()
        except Exception:
            logger.exception("rank %d could not say that it leaves", adapter.communicator.rank)


def check_behind_the_gpu() -> None:
    """Wait for what this process's GPU computes on the current stream, then as `check_all`."""
    if _open and torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    check_all()


def check_all() -> None:
    """Raise what went wrong in any open slot of this process, on any rank."""
    for adapter in _slots():
        adapter.check()
