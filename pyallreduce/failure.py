# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""From a record that a kernel left behind to an error that a person understands."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from pyallreduce import _native
from pyallreduce.errors import AllReduceAborted, CallMismatch, CallRefused, PyallreduceError
from pyallreduce.policy import ALGORITHM_NAMES
from pyallreduce.reasons import Code, Reason

if TYPE_CHECKING:
    from pyallreduce._C import Record

__all__ = ["Stop", "error_from", "signature_text", "stop_of"]

_DTYPES = {0: "float32", 1: "float16", 2: "bfloat16"}
_REFUSED = 1 << 7
_CODES = list(Code)


class Stop(enum.IntEnum):
    """Why a generation ended: csrc/protocol/slab.h, enum Stop."""

    NONE = 0
    DEADLINE = 1
    PEER = 2
    HOST = 3
    MISMATCH = 4
    REFUSED = 5
    OVERLAP = 6
    ABSENT = 7


_PHASES = {0: "start", 1: "signature", 2: "shards", 3: "results"}


def stop_of(state: int) -> Stop:
    """The reason in a state word."""
    return Stop(state & 0xFF)


def signature_text(words: tuple[int, int, int, int]) -> str:
    """A signature as people read it."""
    epoch, _, shape, tag = words
    if shape & _REFUSED:
        return f"refused ({_refusal(tag)})"
    dtype, algorithm, _, grid, laps, chunk = _native.load().decode_shape(shape)
    return (
        f"call {epoch}: {_nbytes(words)} bytes of {_DTYPES.get(dtype, dtype)}, sum, "
        f"{ALGORITHM_NAMES.get(algorithm, algorithm)}, {grid} blocks, {laps} laps, chunk {chunk}, "
        f"tag {tag}"
    )


def _nbytes(words: tuple[int, int, int, int]) -> int:
    """The bytes of a call: its vectors are of 16, the last one may be filled in part."""
    _, vectors, shape, _ = words
    tail = _native.load().decode_shape(shape)[2]
    return vectors * 16 - (16 - tail if tail else 0)


def error_from(rank: int, records: list[Record], death: tuple[int, str]) -> PyallreduceError:
    """The error for `rank`, from every rank's record: the rank that stopped first knows most.

    `death`: the rank that ended where that is the cause, and what is known of its end; (-1, "").
    """
    own = records[rank]
    stop = stop_of(own.state)
    if death[1]:
        return _bereaved(rank, own, *death)
    if stop in (Stop.NONE, Stop.PEER):
        for peer, record in enumerate(records):
            if stop_of(record.state) is Stop.HOST:
                return _given_up(rank, peer, record)
            if stop_of(record.state) not in (Stop.NONE, Stop.PEER):
                return _error(peer, record, f"rank {rank} was stopped by rank {peer}: ")
    return _error(rank, own, "")


def _bereaved(rank: int, own: Record, peer: int, sentence: str) -> AllReduceAborted:
    reason = Reason(Code.PEER_DIED, sentence)
    if not own.state:
        return AllReduceAborted(str(reason), rank=rank, peer=peer)
    phase = _PHASES.get(own.phase, str(own.phase))
    return AllReduceAborted(
        f"{reason} Rank {rank} waited in {signature_text(own.ours)} ({phase}).",
        rank=rank,
        peer=peer,
        call=own.epoch,
        algorithm=ALGORITHM_NAMES.get(own.algorithm, str(own.algorithm)),
        nbytes=_nbytes(own.ours),
        phase=phase,
    )


def _given_up(rank: int, peer: int, record: Record) -> AllReduceAborted:
    """Nobody has died, and yet a peer's host ended its call."""
    message = (
        f"rank {rank} was stopped by rank {peer}, which has closed its communicator while it was "
        f"in a call, or can't go on with it: see what it says itself. "
        f"{signature_text(record.ours)}."
    )
    return AllReduceAborted(message, rank=rank, peer=peer, call=record.epoch)


def _error(rank: int, record: Record, prefix: str) -> PyallreduceError:
    stop = stop_of(record.state)
    if stop is Stop.REFUSED:
        why = _refusal(record.theirs[3])
        message = f"{prefix}rank {record.peer} refused call {record.epoch}: {why}"
        return CallRefused(message, rank=record.peer, call=record.epoch, why=why)
    ours = signature_text(record.ours)
    phase = _PHASES.get(record.phase, str(record.phase))
    algorithm = ALGORITHM_NAMES.get(record.algorithm, str(record.algorithm))
    nbytes = _nbytes(record.ours)
    if stop is Stop.MISMATCH:
        theirs = signature_text(record.theirs)
        both = f"Rank {rank}: {ours}. Rank {record.peer}: {theirs}."
        message = f"{prefix}the ranks made different calls. {both}"
        return CallMismatch(
            message,
            ours=ours,
            theirs=theirs,
            rank=rank,
            peer=record.peer,
            call=record.epoch,
            algorithm=algorithm,
            nbytes=nbytes,
            phase=phase,
        )
    return AllReduceAborted(
        prefix + _abort_text(stop, rank, record, ours, phase),
        rank=rank,
        peer=record.peer,
        call=record.epoch,
        algorithm=algorithm,
        nbytes=nbytes,
        phase=phase,
    )


def _abort_text(stop: Stop, rank: int, record: Record, ours: str, phase: str) -> str:
    seconds = record.waited_ms / 1e3
    if stop is Stop.DEADLINE:
        return (
            f"rank {rank} waited {seconds:.1f} s for rank {record.peer} ({phase}, block "
            f"{record.block}) and gave up. {ours}."
        )
    if stop is Stop.OVERLAP:
        return (
            f"rank {rank} ran two calls of one communicator at once: order its streams by events, "
            f"or use one communicator a stream. {ours}."
        )
    if stop is Stop.ABSENT:
        return (
            f"rank {rank} waited for rank {record.peer} ({phase}), which has closed its "
            f"communicator, as its program does when it ends, by an error too: see what it says "
            f"itself. {ours}."
        )
    who = "the host" if stop is Stop.HOST else "a peer"
    return f"rank {rank} was told to stop by {who} while it waited for rank {record.peer}. {ours}."


def _refusal(tag: int) -> str:
    code = _CODES[tag] if tag < len(_CODES) else None
    return str(Reason(code).cause) if code is not None else f"code {tag}"
