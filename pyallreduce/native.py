# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The native path of one communicator: its slabs, its compiled rank, its generations.

A generation is the time between two armings of the slabs. It ends with the first failure; every
later call of it returns at once, with its output poisoned, until `renew` starts the next one on
all ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pyallreduce import _native, arrays
from pyallreduce.config import Config
from pyallreduce.errors import BackendUnavailable, PyallreduceError
from pyallreduce.exchange import Exchange
from pyallreduce.failure import Stop, error_from, stop_of
from pyallreduce.policy import AlgorithmName, Limits, Plan, plan_for
from pyallreduce.reasons import Code, Reason
from pyallreduce.verdicts import joint_verdict

if TYPE_CHECKING:
    from pyallreduce._C import Rank
    from pyallreduce.slab import Slabs

__all__ = ["NativePath"]

logger = logging.getLogger(__name__)

_CODES = list(Code)
_HOST_STREAM = 0


class NativePath:
    """Launches all-reduces over mapped slabs.

    Args:
        exchange: carries the joint verdicts of `renew`.
        slabs: allocated, armed and opened.
        limits: what the ranks agreed on.
        nonce: of the job; it names this group in its verdicts.
        device: CUDA device index; ignored on the host target.
    """

    def __init__(
        self,
        exchange: Exchange,
        slabs: Slabs,
        limits: Limits,
        config: Config,
        nonce: bytes,
        device: int,
    ) -> None:
        self.limits = limits
        self.layout = slabs.layout
        self._exchange = exchange
        self._slabs = slabs
        self._config = config
        self._nonce = nonce
        self._device = device
        self._rank: Rank = slabs.connect()
        self._plans: dict[int, Plan] = {}
        self._generation = 1
        self._renew_due = False
        self._stream: int | None = None
        self.aborts = 0

    def plan(self, nbytes: int, algorithm: AlgorithmName = "auto") -> Plan:
        """The plan for a message; remembered by size for the default dispatch."""
        if algorithm != "auto":
            return plan_for(nbytes, self.limits, algorithm)
        plan = self._plans.get(nbytes)
        if plan is None:
            plan = plan_for(nbytes, self.limits, self._config.algorithm)
            self._plans[nbytes] = plan
        return plan

    def all_reduce(self, x: torch.Tensor, out: torch.Tensor, plan: Plan, tag: int = 0) -> None:
        """Sum `x` over the ranks into `out`, on the current stream. Both contiguous and aligned.

        Raises:
            AllReduceAborted, CallMismatch, CallRefused: an earlier call failed (host target: or
            this).
        """
        if self._renew_due:
            self.renew()
        state = self._rank.all_reduce(
            x.data_ptr(),
            out.data_ptr(),
            x.numel(),
            arrays.DTYPE_CODES[x.dtype],
            plan.algorithm,
            plan.blocks,
            plan.lanes,
            tag,
            self._current_stream(),
        )
        if state:
            raise self._failure()

    def check(self) -> None:
        """Raise what ended this generation, if anything has. Synchronise the stream first."""
        state = self._rank.state()
        if state and not self._renew_due:
            raise self._failure()

    def refuse(self, code: Code) -> None:
        """Tell the peers that this rank does not join the call that they are in."""
        if self._renew_due:
            self.renew()
        if self._rank.state() == 0:
            self._rank.refuse(_CODES.index(code), self._current_stream())
        self._renew_due = True

    def renew(self) -> None:
        """Start a new generation on all ranks; every rank must come here.

        Drain, prove by a joint verdict that everybody drained, arm, prove that everybody armed.

        Raises:
            ExchangeTimeout: some rank did not come.
            BackendUnavailable: some rank could not; the native path is then of no more use.
        """
        self._generation += 1
        self._step(1, self._drain)
        self._step(2, self._arm)
        self._renew_due = False
        logger.info("rank %d: generation %d", self._exchange.rank, self._generation)

    def capacity(self, algorithm: AlgorithmName) -> int:
        """The largest message, in bytes, that one launch carries; longer ones go in chunks."""
        blocks = plan_for(1 << 40, self.limits, algorithm).blocks
        if algorithm == "one_shot":
            return self.layout.one_shot_capacity(blocks)
        return self.layout.two_shot_capacity(blocks)

    def close(self) -> None:
        """Let go of all shared memory. No kernel of this rank may be running."""
        self._slabs.close()

    def _failure(self) -> PyallreduceError:
        record_at = _native.load().Record.at
        records = [record_at(address) for address in self._slabs.record_addresses()]
        error = error_from(self._exchange.rank, records)
        origin = {stop_of(r.state) for r in records}
        # A refusal harms nobody: all ranks start anew at their next call. An abort needs recover().
        self._renew_due = Stop.REFUSED in origin and origin <= {Stop.NONE, Stop.PEER, Stop.REFUSED}
        self.aborts += 1
        return error

    def _step(self, stage: int, action: Callable[[], None]) -> None:
        def attempt() -> Reason:
            try:
                action()
            except (RuntimeError, OSError) as error:
                return Reason(Code.STAGE_FAILED, str(error))
            return Reason(Code.OK)

        reason = joint_verdict(self._exchange, self._nonce, stage, attempt())
        if reason.code is not Code.OK:
            raise BackendUnavailable(reason)

    def _drain(self) -> None:
        if self.limits.target == "cuda":
            torch.cuda.synchronize(
                self._device
            )  # bounded: every kernel of ours ends by its deadline

    def _arm(self) -> None:
        self._slabs.arm(self._generation, self._config.timeout_ms * 1_000_000)

    def _current_stream(self) -> int:
        if self.limits.target == "host":
            return _HOST_STREAM
        stream = arrays.current_stream(self._device)
        if stream != self._stream:
            self._follow(stream)
        return stream

    def _follow(self, stream: int) -> None:
        """Order a new stream behind the last one: one communicator runs one call at a time."""
        before, self._stream = self._stream, stream
        if before is None or torch.cuda.is_current_stream_capturing():
            return  # what a graph follows is known at its replay: the owner word guards that
        arrays.wait_for(stream, before, self._device)
