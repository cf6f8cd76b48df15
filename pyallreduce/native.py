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
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pyallreduce import _native, arrays
from pyallreduce.config import Config
from pyallreduce.errors import AllReduceAborted, BackendUnavailable, PyallreduceError
from pyallreduce.exchange import Exchange
from pyallreduce.failure import Stop, error_from, stop_of
from pyallreduce.policy import AlgorithmName, Limits, Plan, left_to_nccl, plan_for, table_for
from pyallreduce.reasons import Code, Reason
from pyallreduce.verdicts import Stage, joint_verdict, unforeseen

if TYPE_CHECKING:
    from pyallreduce._C import Rank, Record
    from pyallreduce.slab import Slabs

__all__ = ["Edge", "NativePath"]

logger = logging.getLogger(__name__)

_CODES = list(Code)
_HOST_STREAM = 0
_OF_A_REFUSAL = (Stop.REFUSED, Stop.PEER)
_WATCHDOG_SECONDS = 0.1  # ten of its looks
_MARGIN_SECONDS = 1.0  # behind the deadline of the last kernel
_ASK_AGAIN_SECONDS = 0.01
_Launch = Callable[[int, int, int, int], int]  # input, output, tag, stream


@dataclass(frozen=True)
class Edge:
    """What the ping-pong with `peer` found: csrc/protocol/edges.h.

    `state` is 1 where all rounds came back, 2 where nothing more came, 3 where something else
    came; `rounds` arrived here, `nanoseconds` went by; `read_back` says that this rank's last
    write stands in the peer's memory as this rank sees it.
    """

    peer: int
    state: int
    rounds: int
    nanoseconds: int
    read_back: bool

    @property
    def round_us(self) -> float:
        """The time of a round; infinite if the edge is not sound."""
        return self.nanoseconds / self.rounds / 1e3 if self.state == 1 else math.inf


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
        self._patient = 0  # contexts that ask for patience
        self._settled = True  # as long as the start-up's deadline is in force
        self._calls = 0
        self._waits = False  # a thread, for the device
        self.edges: list[Edge] = []
        self._first_call: Any = None  # an event behind it; torch's stubs do not type events
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
            raise self._failure()
        if not self._settled:
            self._settle_behind_a_call()

    def check(self) -> None:
        """Raise what ended this generation on any rank, if anything has.

        Synchronise the stream first. Every rank's record counts: where one has aborted a step, no
        other may use that step's values. A refusal alone is no abort: it may be of a call that this
        rank has yet to make, and is told there.
        """
        if self._settled and not self._renew_due and self._quiet():
            # All that most steps pay for. Between two of them the engine's own work puts this code
            # and its objects out of the caches, and every function more is felt (bench/NOTES.md,
            # entry 45).
            return
        aborted = self._aborted()
        if self._renew_due and not aborted:
            self._raise_if_drained()
            return
        if aborted or self._rank.state():
            raise self._failure()
        if not self._settled and self._calls:
            self.settle()

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Within, ranks may be far apart: the deadline is `Config.patient_ms`."""
        self._patient += 1
        self.be_patient()
        try:
            yield
        finally:
            self._patient -= 1

    def be_patient(self) -> None:
        """From here until the next eager call has ended, the deadline is `Config.patient_ms`."""
        # In this order: whoever settles meanwhile leaves either his deadline or "not settled".
        self._slabs.set_deadline(self._config.patient_ms)
        self._settled, self._first_call = False, None

    def settle(self) -> None:
        """The ranks are together: from here on the deadline is `Config.timeout_ms`, except within
        `patience()`. Engines say so in every step."""
        if self._patient or self._settled:
            return
        self._settled, self._first_call = True, None
        self._slabs.set_deadline(self._config.timeout_ms)

    def prove(self) -> None:
        """From here on the deadline is that of the live checks, `Config.proof_ms`."""
        self._settled = True
        self._slabs.set_deadline(self._config.proof_ms)

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

        Drain, prove by a joint verdict that everybody drained, arm, prove that everybody armed.

        Raises:
            AllReduceAborted: a rank's process has ended; nobody can go on with it.
            ExchangeTimeout: some rank did not come.
            BackendUnavailable: some rank could not; the native path is then of no more use.
        """
        if self._slabs.ended()[1]:
            raise self._failure()
        self._generation += 1
        self._step(Stage.DRAINED, self._drain)
        self._step(Stage.ARMED, self._arm)
        self._renew_due = False
        self._calls, self._first_call = 0, None  # a refused call settles nothing
        logger.info("rank %d: generation %d", self._exchange.rank, self._generation)

    def _start_anew(self) -> None:
        """After a refusal. What else went wrong on any rank needs `recover()`, and comes first."""
        if self._aborted():
            raise self._failure()
        self.renew()

    def _aborted(self) -> bool:
        """Whether any rank ended a call for another reason than a refusal, or has died."""
        if {stop_of(record.state) for record in self._records()} - {Stop.NONE, *_OF_A_REFUSAL}:
            return True
        return bool(self._slabs.ended()[1])

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
        longest = self._config.timeout_ms if self._settled else self._config.patient_ms
        ended = bool(self._slabs.ended()[1])  # then ours have ended too
        if self._idle(_MARGIN_SECONDS + (0 if ended else longest / 1e3)):
            self._slabs.close()
            return
        if self._waits:
            self._slabs.leave()
            what = "its GPU is still at work: the slab is let go of when that ends, if it does"
        else:
            self._slabs.keep()
            what = "there was no thread to wait for its GPU: the slab stays until this process ends"
        logger.warning("rank %d: %s", self._exchange.rank, what)

    def _failure(self) -> PyallreduceError:
        records, death = self._cause()
        origin = {stop_of(r.state) for r in records}
        error = error_from(self._exchange.rank, records, death)
        # A refusal harms nobody: all ranks start anew at their next call. An abort needs recover().
        self._renew_due = Stop.REFUSED in origin and origin <= {Stop.NONE, *_OF_A_REFUSAL}
        self._drained = self._own_record().drained
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
        return self._records()[self._exchange.rank]

    def _records(self) -> list[Record]:
        record_at = _native.load().Record.at
        return [record_at(page) for page in self._slabs.record_pages()]

    def _cause(self) -> tuple[list[Record], tuple[int, str]]:
        """Every rank's record, and who died, where that is what ended the generation.

        A peer's stop word may be here before its record says why it was raised, and a peer's
        watchdog may have been faster than ours: look again until something names a cause.
        """
        deadline = time.monotonic() + _WATCHDOG_SECONDS
        while True:
            records = self._records()
            if not {stop_of(r.state) for r in records} <= {Stop.NONE, Stop.PEER, Stop.HOST}:
                return records, (-1, "")
            death = self._slabs.ended()
            if death[1] or time.monotonic() > deadline:
                return records, death
            time.sleep(0.001)

    def _settle_behind_a_call(self) -> None:
        """Once an eager call has ended, the ranks are together."""
        self._calls += 1
        if self.limits.target == "host":
            self.settle()
            return
        if arrays.is_capturing(self._device):
            return
        first = self._first_call  # another thread, which checks a step, may settle meanwhile
        if first is None:
            first = torch.cuda.Event()  # type: ignore[no-untyped-call]
            first.record(torch.cuda.current_stream(self._device))
            self._first_call = first
        elif first.query():
            self.settle()

    def _drain(self) -> None:
        """Ours have been told to end. Others' work has half of the time that the peers wait.

        Raises:
            RuntimeError: the device is still at work.
        """
        longest = self._config.exchange_timeout_ms / 2e3
        if not self._idle(longest):
            message = f"rank {self._exchange.rank}: its GPU is still at work after {longest:g} s"
            raise RuntimeError(message)

    def _idle(self, seconds: float) -> bool:
        """Whether all work of the device ends within so many seconds.

        CUDA has no wait with a deadline, and frees no memory without waiting. A thread waits; one
        that is left behind keeps this object, and all memory with it, until the work has ended.
        """
        if self.limits.target == "host":
            return True
        self._waits = False
        waiting = threading.Thread(target=self._wait_idle, name="pyallreduce-idle", daemon=True)
        try:
            waiting.start()
        except RuntimeError as error:
            # The interpreter ends: from Python 3.12 on it starts no new thread. Or this process has
            # as many as it may have, and nobody can wait.
            return "shutdown" in str(error) and self._synchronized()
        self._waits = True
        waiting.join(seconds)
        return not waiting.is_alive()

    def _wait_idle(self) -> None:
        while not self._synchronized():
            time.sleep(_ASK_AGAIN_SECONDS)

    def _synchronized(self) -> bool:
        """Waits for the device. False where CUDA does not, since another thread captures."""
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            if "captur" in str(error):
                return False
            # The context is gone, and its work with it.
            logger.warning("rank %d: %s", self._exchange.rank, error)
        return True

    def _arm(self) -> None:
        # A refusal ends no patience: the ranks are as far apart as before it.
        patient = self._patient or not self._settled
        deadline_ms = self._config.patient_ms if patient else self._config.timeout_ms
        self._slabs.arm(self._generation, deadline_ms)

    def _followed(self) -> int:
        stream = self._current_stream(self._device)
        if stream != self._stream:
            self._follow(stream)
        return stream

    def _follow(self, stream: int) -> None:
        """Order a new stream behind the last one: one communicator runs one call at a time."""
        before, self._stream = self._stream, stream
        if arrays.is_capturing(self._device):
            self.be_patient()
            return  # what a graph follows is known at its replay: the owner word guards that
        if before is not None:
            arrays.wait_for(stream, before, self._device)
