# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Communicator: the all-reduce of one torch.distributed group.

Which groups serve: any of which this process is a member. The start-up exchange runs on the CPU:
over the group itself if it carries CPU tensors (gloo, or "cpu:gloo,cuda:nccl"), else over a gloo
group of the same ranks made for it. What the native path does not take goes to the group's own
NCCL (on the CPU: gloo); a gloo group with CUDA tensors gets an NCCL group of the same ranks, or
pass `fallback_group`.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist

from pyallreduce import arguments, arrays, ops, validate
from pyallreduce.agree import resolve
from pyallreduce.config import Config
from pyallreduce.errors import (
    BackendUnavailable,
    CommunicatorClosed,
    ConfigError,
    InvalidCall,
    PyallreduceError,
)
from pyallreduce.exchange import Exchange
from pyallreduce.facts import share_a_gpu
from pyallreduce.fallback import Fallback
from pyallreduce.policy import AlgorithmName, Limits, Plan, plan_for, table_lines
from pyallreduce.reasons import Code, Reason
from pyallreduce.tuned import machine_of
from pyallreduce.verdicts import Stage

if TYPE_CHECKING:
    from pyallreduce.facts import Target
    from pyallreduce.native import NativePath

__all__ = ["Communicator", "Decision", "Stats"]

logger = logging.getLogger(__name__)

_BY_DEFAULT = (None, "auto")

_LIVE: weakref.WeakSet[Communicator] = weakref.WeakSet()


def _disown() -> None:
    """A forked child has neither its parent's CUDA context nor its watchdogs."""
    for communicator in list(_LIVE):
        communicator.closed = True


os.register_at_fork(after_in_child=_disown)


@dataclass(frozen=True)
class Decision:
    """Who runs the all-reduce, why, and the dispatch table in force (one line an entry).

    As text: "native: " or "gloo always: ", and the reason with its remedy.
    """

    backend: str
    reason: Reason
    target: Target
    requested: str
    table: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'native' if self.backend == 'native' else self.table[0]}: {self.reason}"


@dataclass(frozen=True)
class Stats:
    """Native calls and their bytes, calls that went to NCCL or gloo by reason code, and aborts."""

    calls: int
    bytes: int
    fallbacks: dict[str, int]
    aborts: int


class Communicator:
    """All-reduce among the ranks of `group`; every rank must construct it, at the same point.

    One communicator serves one stream at a time: a call on another stream is ordered behind the
    last one. A graph is captured and replayed like any other kernel; two graphs, or a graph and an
    eager call, that run at once on one communicator end in an `AllReduceAborted` that says so.

    Args:
        group: a torch process group; None is the default group.
        device: the device of the tensors; None is the current CUDA device, or the CPU without one.
        config: None reads the PYALLREDUCE_* variables.
        fallback_group: carries what the native path does not take; None as above.

    Raises:
        NotAMember: this process is not in the group, or `fallback_group` is of other ranks.
        ConfigError: a setting is unknown or out of range.
        BackendUnavailable: native was demanded and cannot be had; `SlabMemoryError` for want of
        memory. ExchangeTimeout: some rank did not come; the group is then of no more use.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str | int | None = None,
        *,
        config: Config | None = None,
        fallback_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.config = Config.from_env() if config is None else config
        if not isinstance(self.config, Config):
            raise ConfigError(f"config is a {type(config).__name__}: expected a pyallreduce.Config")
        self.device = arguments.chosen_device(device)
        self._index = -1 if self.device.index is None else self.device.index
        exchange = Exchange(group, self.config.exchange_timeout_ms)
        self.rank, self.world_size = exchange.rank, exchange.world
        self.closed = False
        agreement = resolve(exchange, self.device, self.config)
        self._native = agreement.native
        self._parked: list[NativePath] = []  # what graphs may still write to
        self.validation_ms = agreement.validation_ms
        self._edges = agreement.edges
        shared = share_a_gpu(agreement.facts)
        try:
            self._fallback = Fallback(exchange, self.device, fallback_group, nccl=not shared)
        except BaseException:
            if self._native is not None:
                self._native.close()  # nobody else can: this communicator never comes to be
            raise
        self._limits = (
            Limits(max(2, min(self.world_size, 8)), agreement.decision.target, 128)
            if self._native is None
            else self._native.limits
        )
        found = agreement.decision
        table = table_lines(self._limits) if self._native else (f"{self._fallback.name} always",)
        self.decision = Decision(found.backend, found.reason, found.target, found.requested, table)
        self.machine = machine_of(agreement.facts)
        self._calls = self._bytes = 0
        self._fallbacks: Counter[str] = Counter()
        self._id = ops.register(self)
        _LIVE.add(self)
        self._announce()

    def all_reduce(
        self,
        x: Any,
        out: Any = None,
        op: str = "sum",
        *,
        algorithm: AlgorithmName | None = None,
        tag: int = 0,
    ) -> Any:
        """Reduce `x` over the ranks.

        Sums of float32, float16 and bfloat16 of any length run natively: accumulated in fp32 from
        rank 0 to rank N-1 and rounded once, the same bits on every rank, whatever the algorithm.
        Everything else goes to NCCL (gloo on the CPU). On a GPU the call is asynchronous on the
        current stream. CUDA graphs and `torch.compile` record it; `torch.jit.trace` does not, and
        no derivative goes through it: a tensor that requires grad is refused, and a forward-mode
        tangent is not carried.

        Args:
            x: a tensor on this communicator's device, of any shape and strides, with memory of its
                own (of a DTensor: its local tensor), or a CUDA array of another library (CuPy: on
                its current stream; Numba: with `out`).
            out: where the result goes: None for a new array, `x` itself for in place, or another
                array of the same shape, dtype and device, apart from `x` in memory (columns of one
                matrix lie between each other, and are not). Its elements share no memory, and where
                gradients are recorded it requires none.
            op: "sum", "avg", "max", "min" or "product".
            algorithm: forces "one_shot" or "two_shot"; the call is then native or an error. "auto"
                is what None is.
            tag: 0 to 2^31-1; ranks whose tags differ get `CallMismatch`.

        Returns:
            `out`, or the new array.

        Raises:
            InvalidCall: arguments that no backend takes. The peers of a native call are told, and
                get `CallRefused`; all ranks can go on with their next call.
            AllReduceAborted, CallMismatch, CallRefused: an earlier call failed (on the CPU: this
                one).
            CommunicatorClosed: after `close()`.
            torch.OutOfMemoryError (on the CPU: RuntimeError): there was no memory for the result or
                a copy. The peers get `CallRefused`, as of an invalid call.
        """
        # What a server calls all day takes a few microseconds here, and no judgement beyond this.
        usual = op == "sum" and type(tag) is int and tag >> 31 == 0
        usual = usual and algorithm in arguments.ALGORITHMS
        native = None if torch.compiler.is_dynamo_compiling() else self._native
        if usual and native is not None and (source := self._usual(x, native, algorithm)):
            try:
                result = torch.empty_like(x) if out is None else out
            except AssertionError:  # FakeTensorMode takes no real tensor: refused below
                return self._judged(x, out, op, algorithm, tag)
            except RuntimeError as error:
                self._tell_of_lack_of_memory(error)
                raise
            if out is None:
                target = result.data_ptr()
            elif out is x:
                target = source
            else:
                target = arrays.address_apart(out, x, source, self._index)
            if target:
                self._bytes += native.usual(x, source, target, tag, algorithm)
                self._calls += 1
                return result
        if torch.compiler.is_compiling():
            return self._traced(x, out, op, algorithm, tag)
        return self._judged(x, out, op, algorithm, tag)

    def _judged(self, x: Any, out: Any, op: str, algorithm: AlgorithmName | None, tag: int) -> Any:
        """A call that may be refused, go to NCCL, or need copies."""
        self._refuse_if_closed()
        if arrays.is_foreign(x):
            return self._foreign(x, out, op, algorithm, tag)
        if wrong := arguments.complaint(x, out, op, algorithm, tag, self.device):
            self._reject(*wrong)
        code = self._why_not_native(x, op, algorithm)
        if code is not None and algorithm not in _BY_DEFAULT:
            why = Reason(code).cause if self._native else self.decision.reason
            self._reject(code, f"algorithm={algorithm!r}, op={op!r}, {x.dtype}: {why}")
        if code is not None or self._native is None:
            result = arrays.empty_like(x) if out is None else out
            self._fallbacks[(code or self.decision.reason.code).value] += 1
            self._fallback.all_reduce(x, result, op)
            return result
        with self._lack_of_memory_told():
            result = arrays.empty_like(x) if out is None else out
        self._run(x, result, algorithm or "auto", tag)
        return result

    def accepts(self, x: Any, op: str = "sum") -> bool:
        """Whether `all_reduce(x, op=op)` would run natively."""
        if self.closed or self._native is None or op != "sum":
            return False
        if arrays.is_foreign(x):
            try:
                x = arrays.view(x)
            except InvalidCall:
                return False
        return (
            isinstance(x, torch.Tensor)
            and x.device == self.device
            and x.layout is torch.strided
            and x.dtype in arrays.DTYPE_CODES
            and not (x.requires_grad and torch.is_grad_enabled())
            and (torch.compiler.is_compiling() or arrays.has_memory(x))  # traced: it has none yet
            and not self._native.left_to_nccl(x.nbytes)
        )

    def plan(self, nbytes: int) -> str:
        """The algorithm that default dispatch picks for a message of `nbytes` bytes, or "nccl"."""
        if self._native is None or self._native.left_to_nccl(nbytes):
            return "nccl"
        return plan_for(nbytes, self._limits, self.config.algorithm).name

    @property
    def one_order(self) -> bool:
        """Whether float sums of every size have the one order of summation, rank 0 to N-1."""
        return self._native is not None and not self._native.leaves

    def plan_of(self, nbytes: int, algorithm: AlgorithmName = "auto") -> Plan:
        """The launch that carries a message of `nbytes` bytes natively."""
        return plan_for(
            nbytes, self._limits, self.config.algorithm if algorithm == "auto" else algorithm
        )

    @property
    def limits(self) -> Limits:
        """What the ranks agreed on for their launches."""
        return self._limits

    def run_plan(self, x: torch.Tensor, plan: Plan) -> None:
        """Reduce `x` in place by one given plan: for tuning, which measures what no table says yet.

        `x` is contiguous, aligned to 16 bytes, of a dtype that runs natively; every rank passes the
        same plan.

        Raises:
            BackendUnavailable: there is no native path.
            CommunicatorClosed: after `close()`.
        """
        self._refuse_if_closed()
        if self._native is None:
            raise BackendUnavailable(self.decision.reason)
        self._native.all_reduce(x, x, plan)

    def capacity(self, algorithm: AlgorithmName) -> int:
        """The largest message, in bytes, that goes through the mailboxes at once; 0 without the
        native path."""
        return 0 if self._native is None else self._native.capacity(algorithm)

    def check(self) -> None:
        """Raise what went wrong in earlier calls, on this rank or any other.

        Synchronise the stream first to see them all. Call it at the end of each step, before a
        value leaves: no rank may use what another one aborted. Of a peer that is a step ahead it
        may report that step's abort. Calls that went to NCCL or gloo leave no record, and after
        `close()` there is none to ask.
        """
        if self._native is not None and not self.closed:
            self._native.check()

    def recover(self) -> None:
        """Start anew after an abort; every rank must call it.

        All ranks drain, prove that by a joint verdict, arm their slabs and run the kernels' live
        checks again. Where that fails on any rank, NCCL takes over on all; `decision` says so, and
        graphs that were captured before have to be captured anew: their calls give NaN.

        Raises:
            AllReduceAborted: a rank's process has ended, or it has closed its communicator; nobody
                can go on without it.
            ExchangeTimeout: some rank did not come; where the message says so, all may try again.
            BackendUnavailable: the native path was demanded and cannot be had any more.
            CommunicatorClosed: after `close()`.
        """
        self._refuse_if_closed()
        if self._native is None:
            return
        native = self._native
        try:
            native.renew()
            native.agree(Stage.RECOVERED, validate.first_calls(native, self.rank, self.device))
            native.patience.begin()
        except BackendUnavailable as error:
            if self.config.backend == "native":
                raise
            self._native = None
            self._parked.append(native)
            native.park()
            table = (f"{self._fallback.name} always",)
            self.decision = replace(self.decision, backend="nccl", reason=error.reason, table=table)
            self._announce()

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Within, ranks may be far apart (compilation, warm-up): waits last ten times as long.

        Without it that holds until the first call has ended, and from a graph's capture to the
        next eager call or `check()`, if the capture's stream is another than the last call's.
        """
        if self._native is None or self.closed:
            yield
            return
        with self._native.patience.within():
            yield

    def settle(self) -> None:
        """All ranks are together: from here on a wait has the usual deadline, also one of a graph
        that is replayed before the next call. Does nothing within `patience()`."""
        if self._native is not None and not self.closed:
            self._native.patience.settle()

    def edges(self) -> list[tuple[int, float]]:
        """Every peer and the time of one round of the start-up's ping-pong with it, in µs: until
        this rank's vector and the peer's had crossed; infinite where they did not, or not sound.
        Empty where it did not come to that."""
        return [(e.peer, e.round_us) for e in self._edges]

    def stats(self) -> Stats:
        """Counts since construction; a graph's replays count as the one captured call."""
        paths = (*self._parked, self._native)
        aborts = sum(native.aborts for native in paths if native is not None)
        return Stats(self._calls, self._bytes, dict(self._fallbacks), aborts)

    def memory(self) -> list[tuple[str, int]]:
        """What the slab's memory is used for, in bytes; empty without the native path."""
        return [] if self._native is None else self._native.memory()

    def leave(self) -> None:
        """Make no more calls: peers that wait for this rank end at once, and name it.

        For a process that must end and can't say for how long its GPU is still at work; `close()`
        does this too, behind that work.
        """
        if self._native is not None and not self.closed:
            self._native.leave()

    def close(self) -> None:
        """Let go of the slabs; safe to call twice. Waits for this device's work first, no longer
        than a call may take: what then still runs keeps the slabs until it ends."""
        if self.closed:
            return
        self.closed = True
        _LIVE.discard(self)
        ops.unregister(self._id)
        for native in (*self._parked, self._native):
            if native is not None:
                native.close()

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _announce(self) -> None:
        if self.rank != 0:
            return
        if self._native is not None:
            logger.info("native all-reduce, %s; %s", self.decision.reason, self.decision.table[0])
        else:
            logger.warning(
                "%s carries every all-reduce. %s", self._fallback.name, self.decision.reason
            )

    def _traced(
        self,
        x: torch.Tensor,
        out: torch.Tensor | None,
        op: str,
        algorithm: AlgorithmName | None,
        tag: int,
    ) -> torch.Tensor:
        if wrong := arguments.complaint_of_traced(x, out):
            # While it is traced, and where a graph may break, then in the eager call, as usual.
            raise InvalidCall(f"rank {self.rank}: {wrong}")
        result: torch.Tensor = torch.ops.pyallreduce.all_reduce(x, self._id, op, algorithm, tag)
        return result if out is None else out.copy_(result)

    def _foreign(self, x: Any, out: Any, op: str, algorithm: AlgorithmName | None, tag: int) -> Any:
        with arrays.on_stream(x):
            source, target, result = self._views(x, out)
            self.all_reduce(source, target, op, algorithm=algorithm, tag=tag)
        return result

    def _views(self, x: Any, out: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Tensors over the memory of another library's `x` and result, and the result itself."""
        try:
            result = arrays.empty_like(x) if out is None else out
            return arrays.view(x), arrays.view(result), result
        except Exception as error:  # of that library, of whatever kind: the peers wait already
            self._reject(Code.ARGUMENT, str(error) or repr(error))

    def _refuse_if_closed(self) -> None:
        if self.closed:
            message = f"rank {self.rank}: this communicator is closed; make a new one"
            raise CommunicatorClosed(message)

    def _usual(self, x: Any, native: NativePath, algorithm: AlgorithmName | None) -> int:
        """The address of `x` where it can be launched as it is; else 0."""
        if self.closed or (native.leaves and algorithm in _BY_DEFAULT):
            return 0
        return arrays.address(x, self._index)

    def _run(self, x: torch.Tensor, out: torch.Tensor, algorithm: AlgorithmName, tag: int) -> None:
        """Launch, over local copies where `x` or `out` is strided or unaligned."""
        native = self._native
        if native is None:
            return
        nbytes = x.numel() * x.element_size()
        with self._lack_of_memory_told():
            source = x if arrays.is_direct(x) else x.clone(memory_format=torch.contiguous_format)
            target = out if arrays.is_direct(out) else torch.empty_like(source)
        native.all_reduce(source, target, native.plan(nbytes, algorithm), tag)
        if target is not out:
            out.copy_(target)
        self._calls += 1
        self._bytes += nbytes

    def _why_not_native(
        self, x: torch.Tensor, op: str, algorithm: AlgorithmName | None
    ) -> Code | None:
        native = self._native
        if native is None:
            return self.decision.reason.code
        if op != "sum":
            return Code.OP
        if x.dtype not in arrays.DTYPE_CODES:
            return Code.DTYPE
        if native.leaves and algorithm in _BY_DEFAULT and native.left_to_nccl(x.nbytes):
            return Code.SIZE_POLICY
        return None

    def _reject(self, code: Code, message: str) -> NoReturn:
        """Refuse the call here and at the peers."""
        self._refuse(code)
        raise InvalidCall(f"rank {self.rank}: {message}")

    @contextmanager
    def _lack_of_memory_told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._tell_of_lack_of_memory(error)
            raise

    def _tell_of_lack_of_memory(self, error: RuntimeError) -> None:
        """Of a native call; peers in NCCL or gloo could not hear it. Other errors are not told."""
        if not arrays.is_lack_of_memory(error):
            return
        try:
            self._refuse(Code.CALL_MEMORY)
        except PyallreduceError as untold:
            # Behind an earlier refusal a new generation has to begin, and cannot. The error that
            # the caller gets is its own.
            logger.warning("rank %d: its lack of memory could not be told: %s", self.rank, untold)

    def _refuse(self, code: Code) -> None:
        """Tell the peers, who may already wait for this call, that this rank does not make it."""
        capturing = self.device.type == "cuda" and arrays.is_capturing(self._index)
        if self._native is not None and not capturing:
            self._native.refuse(code)
