# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""resolve(): the collective that turns everybody's facts into one decision and, if native, shared
slabs.

Errors travel as data: whatever goes wrong on one rank, every rank takes part in the same
exchanges, and nobody acts before a completed joint verdict. A veto rolls back and names NCCL; an
exchange that is not completed in time raises, because its group is then of no more use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from pyallreduce import _native, tuned, validate, wire
from pyallreduce.config import Config
from pyallreduce.edge import Edge
from pyallreduce.errors import BackendUnavailable, SlabMemoryError, WireError
from pyallreduce.exchange import Exchange
from pyallreduce.facts import Facts
from pyallreduce.native import NativePath
from pyallreduce.policy import Limits
from pyallreduce.reasons import Code, Reason
from pyallreduce.selector import Decision, decide
from pyallreduce.slab import SlabError, Slabs
from pyallreduce.table import Table
from pyallreduce.topology import foreign_processes, probe
from pyallreduce.verdicts import Stage, first_veto, joint_verdict, unforeseen

__all__ = ["Agreement", "resolve"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Agreement:
    """What the group decided; `native` is set when its backend is native. `edges` is what this rank
    saw of them, also where that was the veto."""

    decision: Decision
    facts: tuple[Facts, ...]
    native: NativePath | None
    validation_ms: float = 0.0  # what the live checks took
    edges: tuple[Edge, ...] = ()


def resolve(exchange: Exchange, device: torch.device, config: Config) -> Agreement:
    """Agree on a backend and set it up; every rank of the group must call it.

    Raises:
        BackendUnavailable: native was demanded and cannot be had; on every rank alike.
        ExchangeTimeout: some rank did not take part in time.
    """
    facts, nonce = _gather_facts(exchange, probe(exchange.rank, exchange.world, device, config))
    decision = decide(facts)
    native, stopwatch, edges = None, _Stopwatch(), list[Edge]()
    if decision.backend == "native":
        _name_foreign(exchange.rank, facts)
        native, veto = _set_up(exchange, device, config, facts, nonce, stopwatch, edges)
        if native is None:
            decision = replace(decision, backend="nccl", reason=veto)
    if native is None and decision.requested == "native":
        error = SlabMemoryError if decision.reason.code is Code.SLAB_MEMORY else BackendUnavailable
        raise error(decision.reason)
    return Agreement(decision, facts, native, stopwatch.ms, tuple(edges))


def _gather_facts(exchange: Exchange, mine: Facts) -> tuple[tuple[Facts, ...], bytes]:
    """Everybody's facts, and the job's nonce: the one that rank 0 drew."""
    frame = wire.encode_facts(mine, nonce=os.urandom(wire.NONCE_BYTES))
    frames = exchange.gather(frame, "facts")
    try:
        facts = tuple(
            wire.decode(f, Facts, rank=rank, world=exchange.world) for rank, f in enumerate(frames)
        )
        return facts, wire.read_header(frames[0]).nonce
    except WireError as error:
        # The same bytes are refused on every rank.
        another = error.field in ("magic", "version")
        code = Code.PROTOCOL_VERSION if another else Code.STAGE_FAILED
        reason = Reason(code, f"a rank's facts can't be read: {error}")
        raise BackendUnavailable(reason) from error


@dataclass
class _Stopwatch:
    """The time of the live checks, in ms."""

    ms: float = 0.0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms += (time.perf_counter() - start) * 1e3


def _name_foreign(rank: int, facts: tuple[Facts, ...]) -> None:
    """A warning is all: what shares a GPU slows the kernels of both, and the live checks decide."""
    others = foreign_processes(facts[rank], facts)
    if others:
        logger.warning("%s", Reason(Code.FOREIGN_PROCESS, f"{facts[rank]}: {others}"))


def _set_up(
    exchange: Exchange,
    device: torch.device,
    config: Config,
    facts: tuple[Facts, ...],
    nonce: bytes,
    stopwatch: _Stopwatch,
    edges: list[Edge],
) -> tuple[NativePath | None, Reason]:
    target = facts[0].target
    index = device.index or 0
    try:
        layout = _native.load().Layout(exchange.world, config.slab_bytes)
    except ValueError as error:  # the same arguments, so the same answer, on all ranks
        return None, Reason(Code.SLAB_SIZE, str(error))
    table = _agree_table(exchange, config, facts, nonce)
    slabs = Slabs(target, index, exchange.rank, layout)
    exchange.obituary = slabs.ended
    native: NativePath | None = None

    def offer() -> wire.SlabOffer:
        slabs.allocate(nonce, config.proof_ms, config.notice_ms)
        return slabs.offer(nonce)

    def connect() -> NativePath:
        limits = Limits(exchange.world, target, _agreed_blocks(facts), table, layout.one_shot_tile)
        return NativePath(exchange, slabs, limits, config, nonce, index)

    with contextlib.ExitStack() as otherwise:
        # On a veto, and where an exchange is not completed in time.
        otherwise.callback(slabs.close)
        offers, veto = _exchange_offers(exchange, nonce, *_attempt(exchange.rank, offer))
        if offers is not None:
            _, mine = _attempt(exchange.rank, lambda: slabs.open(offers, nonce))
            if mine.code is Code.OK:
                native, mine = _attempt(exchange.rank, connect)
            veto = joint_verdict(exchange, nonce, Stage.OPENED, mine)
        with stopwatch():
            if veto.code is Code.OK and native is not None:
                mine = validate.edges(native, exchange.rank, nonce)
                edges.extend(native.edges)
                veto = joint_verdict(exchange, nonce, Stage.EDGES, mine)
            if veto.code is Code.OK and native is not None:
                mine = validate.first_calls(native, exchange.rank, device)
                veto = joint_verdict(exchange, nonce, Stage.CALLS, mine)
        if veto.code is Code.OK and native is not None:
            otherwise.pop_all()
            native.patience.begin()
            return native, veto
        # Nobody frees what a peer may still have mapped.
        slabs.let_go()
        all_have = joint_verdict(exchange, nonce, Stage.CLOSED, Reason(Code.OK))
        slabs.released = all_have.code is Code.OK
    return None, veto


def _agree_table(
    exchange: Exchange, config: Config, facts: tuple[Facts, ...], nonce: bytes
) -> Table | None:
    """The tuned table that all ranks have for this group, if they have the same."""
    mine, _ = _attempt(
        exchange.rank,
        lambda: tuned.load(tuned.machine_of(facts), tuned.path_of(config.tuning_file)),
    )
    frame = wire.encode_table(
        wire.TableOffer(mine), nonce=nonce, rank=exchange.rank, world=exchange.world
    )
    return tuned.agreed(exchange.gather(frame, "tables"), nonce)


def _exchange_offers(
    exchange: Exchange, nonce: bytes, offer: wire.SlabOffer | None, mine: Reason
) -> tuple[list[wire.SlabOffer] | None, Reason]:
    """Everybody's offers, or everybody's veto: a rank without one sends its verdict."""
    place = {"nonce": nonce, "rank": exchange.rank, "world": exchange.world}
    if offer is not None:
        frame = wire.encode_slab(offer, **place)  # type: ignore[arg-type]
    else:
        verdict = wire.Verdict(Stage.OPENED, mine.code, mine.detail)
        frame = wire.encode_verdict(verdict, **place)  # type: ignore[arg-type]
    offers: list[wire.SlabOffer] = []
    verdicts: list[Reason] = []
    for rank, raw in enumerate(exchange.gather(frame, "slab offers")):
        try:
            if wire.read_header(raw).kind is wire.Kind.SLAB:
                offers.append(
                    wire.decode(raw, wire.SlabOffer, nonce=nonce, rank=rank, world=exchange.world)
                )
                verdicts.append(Reason(Code.OK))
            else:
                refused = wire.decode(
                    raw, wire.Verdict, nonce=nonce, rank=rank, world=exchange.world
                )
                verdicts.append(refused.reason)
        except WireError as error:
            verdicts.append(Reason(Code.STAGE_FAILED, str(error)))
    veto = first_veto(verdicts)
    return (offers if veto.code is Code.OK else None), veto


def _attempt(rank: int, action: Callable[[], Result]) -> tuple[Result | None, Reason]:
    """The result, or why there is none: an error here is data for the verdict."""
    try:
        return action(), Reason(Code.OK)
    except SlabError as failure:
        return None, failure.reason
    except Exception as error:
        return None, unforeseen(rank, error)


def _agreed_blocks(facts: tuple[Facts, ...]) -> int:
    """A grid that is resident at once on the smallest GPU of the group."""
    most = int(_native.load().MAX_BLOCKS)
    counts = [f.sm_count for f in facts if f.sm_count > 0]
    return min([most, *counts])
