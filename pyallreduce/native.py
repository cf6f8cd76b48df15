# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The native path of one communicator: its slabs, its compiled rank, its generations.

A generation is the time between two armings of the slabs. It ends with the first failure; every
later call of it returns at once, with its output poisoned, until `renew` starts the next one on
all ranks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pyallreduce import arrays
from pyallreduce.config import Config
from pyallreduce.edge import Edge
from pyallreduce.errors import AllReduceAborted, BackendUnavailable, PyallreduceError
from pyallreduce.exchange import Exchange
from pyallreduce.failure import Stop, error_from
from pyallreduce.idle import Idle, wait_idle
from pyallreduce.patience import Patience
from pyallreduce.policy import AlgorithmName, Limits, Plan, left_to_nccl, plan_for, table_for
from pyallreduce.reasons import Code, Reason
from pyallreduce.records import (
    find_cause,
    read_records,
    tell_of_a_refusal_alone,
    tell_of_an_abort,
    tell_of_generation,
)
from pyallreduce.rendezvous import meet
from pyallreduce.verdicts import Stage, joint_verdict, unforeseen

if TYPE_CHECKING:
    from pyallreduce._C import Rank, Record
    from pyallreduce.slab import Slabs

__all__ = ["NativePath"]

logger = logging.getLogger(__name__)

_CODES = list(Code)
_HOST_STREAM = 0
_MARGIN_SECONDS = 1.0  # behind the deadline of the last kernel
_Launch = Callable[[int, int, int, int], int]  # input, output, tag, stream


def _host_stream(_device: int) -> int:
    return _HOST_STREAM


class NativePath:
    """Launches all-reduces over mapped slabs.

    Args:
        exchange: carries the joint verdicts of `renew`.
        slabs: allocated, armed and opened.
        limits: what the ranks agreed on. `leaves` says that some sizes go to NCCL by it.
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
        self._quiet = slabs.quiet()
        self._launches: dict[torch.dtype, dict[int | tuple[str, int], _Launch]]
        self._launches = {dtype: {} for dtype in arrays.DTYPE_CODES}
        may_leave = config.algorithm == "auto" and not config.batch_invariant
        self.leaves = may_leave and table_for(limits).leaves
        self._generation = 1
        self._renew_due = False
        self._drained = 0  # calls that had drained when a failure was told
        on_host = limits.target == "host"
        self._stream: int | None = _HOST_STREAM if on_host else None
        self._current_stream = _host_stream if on_host else arrays.current_stream
        self.patience = Patience(slabs, config, limits.target, device)
        self.edges: list[Edge] = []
        self.aborts = 0

    def memory(self) -> list[tuple[str, int]]:
        """What the slab's memory is used for, in bytes."""
        return self._slabs.memory()

    def plan(self, nbytes: int, algorithm: AlgorithmName = "auto") -> Plan:
        """The plan for a message."""
        chosen = self._config.algorithm if algorithm == "auto" else algorithm
        return plan_for(nbytes, self.limits, chosen)

    def left_to_nccl(self, nbytes: int) -> bool:
        """Whether default dispatch gives a message of this size to the fallback."""
        return self.leaves and left_to_nccl(nbytes, self.limits)

    def all_reduce(self, x: torch.Tensor, out: torch.Tensor, plan: Plan, tag: int = 0) -> None:
        """Sum `x` over the ranks into `out`, on the current stream. Both contiguous and aligned.

        Raises:
            AllReduceAborted, CallMismatch, CallRefused: an earlier call failed (host target: or
            this).
        """
        self._run(self._launch(x, plan), x.data_ptr(), out.data_ptr(), tag)

    def usual(
        self,
        x: torch.Tensor,
        source: int,
        target: int,
        tag: int,
        algorithm: AlgorithmName | None = None,
    ) -> int:
        """As `all_reduce`, of addresses that `arrays.address` has given; by default dispatch, or by
        the algorithm that is forced.

        Launches are remembered by dtype, algorithm and size, in bytes, which is returned.
        """
        remembered = self._launches[x.dtype]
        nbytes = x.nbytes
        key = nbytes if algorithm is None else (algorithm, nbytes)
        launch = remembered.get(key)
        if launch is None:
            launch = remembered[key] = self._launch(x, self.plan(nbytes, algorithm or "auto"))
        self._run(launch, source, target, tag)
        return nbytes

    def _launch(self, x: torch.Tensor, plan: Plan) -> _Launch:
        code = arrays.DTYPE_CODES[x.dtype]
        launch = self._rank.launch(x.numel(), code, plan.algorithm, plan.blocks, plan.lanes)
        return launch.__call__  # bound once, not in every call

    def _run(self, launch: _Launch, source: int, target: int, tag: int) -> None:
        if self._renew_due:
            self._start_anew()
        if launch(source, target, tag, self._followed()):
            raise self._failure(read_records(self._slabs))
        if not self.patience.settled:
            self.patience.settle_behind_a_call()

    def check(self) -> None:
        """Raise what ended this generation on any rank, if anything has.

        Synchronise the stream first. Every rank's record counts: where one has aborted a step, no
        other may use that step's values. A refusal alone is no abort: it may be of a call that this
        rank has yet to make, and is told there.
        """
        if self.patience.settled and not self._renew_due and self._quiet():
            # All that most steps pay for. Between two of them the engine's own work puts this code
            # and its objects out of the caches, and every function more is felt (bench/NOTES.md,
            # entry 45).
            return
        records = read_records(self._slabs)
        aborted = self._aborted(records)
        if self._renew_due and not aborted:
            self._raise_if_drained()
            return
        if aborted or records[self._exchange.rank].state:
            raise self._failure(records)
        self.patience.settle_behind_a_check()

    def ping_pong(self, rounds: int, seed: int) -> list[Edge]:
        """Prove the edges to and from all peers by `rounds` messages; every rank must call it."""
        stream = self._followed()
        self._rank.ping_pong(rounds, seed, stream)
        if self.limits.target == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        peers = (p for p in range(self.limits.world) if p != self._exchange.rank)
        self.edges = [Edge(peer, *self._rank.edge(peer)) for peer in peers]
        return self.edges

    def agree(self, stage: Stage, mine: Reason) -> None:
        """Raise BackendUnavailable on every rank if any rank vetoes."""
        reason = joint_verdict(self._exchange, self._nonce, stage, mine)
        if reason.code is not Code.OK:
            raise BackendUnavailable(reason)

    def refuse(self, code: Code) -> None:
        """Tell the peers that this rank does not join the call that they are in."""
        if self._renew_due:
            self._start_anew()
        if self._rank.state() == 0:
            self._rank.refuse(_CODES.index(code), self._followed())
        self._renew_due, self._drained = True, self._own_record().drained

    def renew(self) -> None:
        """Start a new generation on all ranks; every rank must come here.

        Wait for everybody, drain, prove by a joint verdict that everybody drained, arm, prove that
        everybody armed.

        Raises:
            AllReduceAborted: a rank's process has ended, or it has closed; nobody can go on then.
            ExchangeTimeout: some rank did not come.
            BackendUnavailable: some rank could not; the native path is then of no more use.
        """
        seconds = self._config.exchange_timeout_ms / 1e3
        lost = self._exchange.failure
        if lost is not None and not self._slabs.ended()[1]:
            raise lost  # there is nothing to meet for
        try:
            meet(self._slabs, self._exchange.rank, self._generation + 1, seconds)
        except AllReduceAborted:
            self.aborts += 1
            raise
        self._generation += 1
        self._step(Stage.DRAINED, self._drain)
        self._step(Stage.ARMED, self._arm)
        self._renew_due = False
        self.patience.forget_calls()
        logger.info("rank %d: generation %d", self._exchange.rank, self._generation)

    def _start_anew(self) -> None:
        """After a refusal. What else went wrong on any rank needs `recover()`, and comes first."""
        records = read_records(self._slabs)
        if self._aborted(records):
            raise self._failure(records)
        self.renew()

    def _aborted(self, records: list[Record]) -> bool:
        """Whether any rank ended a call for another reason than a refusal, or has died."""
        return tell_of_an_abort(records) or bool(self._slabs.ended()[1])

    def capacity(self, algorithm: AlgorithmName) -> int:
        """The largest message, in bytes, that goes through the mailboxes at once; longer ones go in
        laps or chunks."""
        blocks = plan_for(1 << 40, self.limits, algorithm).blocks
        if algorithm == "one_shot":
            return self.layout.one_shot_capacity(blocks)
        return self.layout.two_shot_capacity(blocks)

    def park(self) -> None:
        """Nothing is launched any more, but graphs may be replayed: their calls drain.

        The memory that they write to stays until `close()`.
        """
        with contextlib.suppress(RuntimeError):  # the context is gone: nothing will be replayed
            self._slabs.stop(Stop.HOST)

    def leave(self) -> None:
        """Let the peers hear that this rank makes no more calls."""
        self._slabs.leave()

    def close(self) -> None:
        """Let go of all shared memory, behind the device's work.

        Where that does not end in time (another library's kernel may wait for ever), the memory
        stays until this process ends: CUDA could not free it without waiting too.
        """
        if self._slabs.inherited:
            return
        ended = bool(self._slabs.ended()[1])  # then ours have ended too
        idle = self._idle(_MARGIN_SECONDS + (0 if ended else self.patience.deadline_ms / 1e3))
        if idle is Idle.YES:
            self._slabs.close()
            return
        if idle is Idle.NOT_YET:
            self._slabs.leave()
            what = "its GPU is still at work: the slab is let go of when that ends, if it does"
        else:
            self._slabs.keep()
            what = "there was no thread to wait for its GPU: the slab stays until this process ends"
        logger.warning("rank %d: %s", self._exchange.rank, what)

    def _failure(self, seen: list[Record]) -> PyallreduceError:
        """The error for what ended this generation; `seen` is what was read when it was found."""
        records, death = find_cause(self._slabs, seen)
        error = error_from(self._exchange.rank, records, death)
        # A refusal harms nobody: all ranks start anew at their next call. An abort needs recover().
        # Where another thread has begun the next generation since, there is nothing to start.
        if death[1] or tell_of_generation(records, self._generation):
            self._renew_due = not death[1] and tell_of_a_refusal_alone(records)
        self._drained = records[self._exchange.rank].drained
        self.aborts += 1
        return error

    def _raise_if_drained(self) -> None:
        """Replays of graphs between a refused call and the next eager one did nothing."""
        drained = self._own_record().drained
        if drained == self._drained:
            return
        count, self._drained = drained - self._drained, drained
        self.aborts += 1
        rank = self._exchange.rank
        message = (
            f"rank {rank}: {count} calls of graphs did nothing, since a call before them was "
            "refused: make an eager call, or recover(), before the next replay"
        )
        raise AllReduceAborted(message, rank=rank)

    def _step(self, stage: Stage, action: Callable[[], None]) -> None:
        def attempt() -> Reason:
            try:
                action()
            except Exception as error:
                return unforeseen(self._exchange.rank, error)
            return Reason(Code.OK)

        self.agree(stage, attempt())

    def _own_record(self) -> Record:
        return read_records(self._slabs)[self._exchange.rank]

    def _drain(self) -> None:
        """Ours have been told to end. Others' work has half of the time that the peers wait.

        Raises:
            RuntimeError: the device is still at work.
        """
        longest = self._config.exchange_timeout_ms / 2e3
        if self._idle(longest) is not Idle.YES:
            message = f"rank {self._exchange.rank}: its GPU is still at work after {longest:g} s"
            raise RuntimeError(message)

    def _idle(self, seconds: float) -> Idle:
        """Whether the device's work ends within so many seconds; until then this object stays."""
        if self.limits.target == "host":
            return Idle.YES
        return wait_idle(self._exchange.rank, self._device, seconds, kept=self)

    def _arm(self) -> None:
        self._slabs.arm(self._generation, self.patience.deadline_ms)

    def _followed(self) -> int:
        stream = self._current_stream(self._device)
        if stream != self._stream:
            self._follow(stream)
        return stream

    def _follow(self, stream: int) -> None:
        """Order a new stream behind the last one: one communicator runs one call at a time."""
        before, self._stream = self._stream, stream
        if arrays.is_capturing(self._device):
            self.patience.begin()
            return  # what a graph follows is known at its replay: the owner word guards that
        if before is not None:
            arrays.wait_for(stream, before, self._device)
