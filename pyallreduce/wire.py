# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Fixed-size binary frames for the start-up exchange: facts, slab offers, verdicts, tables.

All frames have `FRAME_BYTES` bytes, so that one all-gather of a uint8 CPU tensor carries any of
them. Little-endian:

    magic "PYAR", version u16
    kind u16, length of the body u32, job nonce 16 bytes, rank u16, world u16
    the body, then zeros
    8 bytes of BLAKE2b over all of the above

The checksum finds corruption and crossed jobs; it is no defence against a member of the group,
which is trusted. A record has exactly one frame: what decodes encodes to the same bytes.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pyallreduce.config import Backend
from pyallreduce.errors import WireError
from pyallreduce.facts import MAX_LINKS, Facts, Link, Module, Target
from pyallreduce.reasons import Code, Reason
from pyallreduce.table import (
    MAX_BLOCKS,
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_LANES,
    Carrier,
    Entry,
    Table,
    TableError,
)
from pyallreduce.wire_fields import Choice, Constant, Flag, Integer, Layout, Raw, Text

__all__ = [
    "FRAME_BYTES",
    "HANDLE_BYTES",
    "MAX_LINKS",
    "NONCE_BYTES",
    "WIRE_VERSION",
    "Header",
    "Kind",
    "SlabOffer",
    "TableOffer",
    "Verdict",
    "decode",
    "encode_facts",
    "encode_slab",
    "encode_table",
    "encode_verdict",
    "read_header",
]

# Raised with every change of a frame's layout, or of the order of `reasons.Code`.
WIRE_VERSION = 2
FRAME_BYTES = 2048
NONCE_BYTES = 16
HANDLE_BYTES = 64
_CHECKSUM_BYTES = 8
_U16, _I32, _U64 = 2**16 - 1, 2**31 - 1, 2**64 - 1


class Kind(enum.IntEnum):
    """What a frame carries."""

    FACTS = 0
    SLAB = 1
    VERDICT = 2
    TABLE = 3


@dataclass(frozen=True)
class Header:
    """What every frame says about itself; `nonce` names the job, `length` is in bytes."""

    kind: Kind
    length: int
    nonce: bytes
    rank: int
    world: int


@dataclass(frozen=True)
class SlabOffer:
    """How a peer reaches this rank's slab and status page.

    `handle` is CUDA's IPC handle, zeros on the host target. The memfds are opened through
    /proc/`pid`/fd and checked against the process's start time and their inodes; -1 and 0 stand
    for none. `nonce` is what the slab's header holds, to be read back through the mapping.
    """

    handle: bytes
    slab_bytes: int
    pid: int
    start_time: int
    slab_fd: int
    slab_inode: int
    page_fd: int
    page_inode: int
    nonce: bytes


@dataclass(frozen=True)
class Verdict:
    """One rank's outcome of one stage; `detail` is cut to 200 bytes on its way."""

    stage: int
    code: Code
    detail: str = ""

    @property
    def reason(self) -> Reason:
        return Reason(self.code, self.detail)


@dataclass(frozen=True)
class TableOffer:
    """The tuned dispatch table that one rank has for this group; None where it has none."""

    table: Table | None


_PREAMBLE = Layout(
    Constant("magic", "4s", b"PYAR"),
    Constant("version", "H", WIRE_VERSION),
)
_HEADER = Layout(
    Choice("kind", "H", tuple(Kind)),
    Integer("length", "I", 0, FRAME_BYTES),
    Raw("nonce", NONCE_BYTES),
    Integer("rank", "H", 0, _U16),
    Integer("world", "H", 1, _U16),
)
_FACTS = Layout(
    Integer("protocol", "H", 0, _U16),
    Choice("target", "B", get_args(Target)),
    Choice("module", "B", get_args(Module)),
    Choice("backend", "B", get_args(Backend)),
    Flag("has_kernel"),
    Flag("mig"),
    Flag("confidential"),
    Flag("wsl"),
    Flag("nccl_p2p_disabled"),
    Flag("share_gpu"),
    Integer("pid", "I", 1, _I32),
    Integer("pid_namespace", "Q", 0, _U64),
    Integer("capability", "H", 0, 999),
    Integer("sm_count", "H", 0, _U16),
    Integer("driver_cuda", "I", 0, 999_999),
    Integer("build_cuda", "I", 0, 999_999),
    Raw("config_digest", 8),
    Text("boot_id", 64),
    Text("gpu_uuid", 48),
    Text("bus_id", 32),
    Text("gpu_name", 96, cut=True),
    Text("error", 200, cut=True),
)
_LINK = Layout(
    Text("peer_uuid", 48),
    Flag("access"),
    Integer("nvlink", "B", 0, 255),
    Text("error", 44, cut=True),
)
_SLAB = Layout(
    Raw("handle", HANDLE_BYTES),
    Integer("slab_bytes", "Q", 1, 2**48),
    Integer("pid", "i", 1, _I32),
    Integer("start_time", "Q", 0, _U64),
    Integer("slab_fd", "i", -1, _I32),
    Integer("slab_inode", "Q", 0, _U64),
    Integer("page_fd", "i", -1, _I32),
    Integer("page_inode", "Q", 0, _U64),
    Raw("nonce", NONCE_BYTES),
)
_VERDICT = Layout(
    Integer("stage", "H", 0, _U16),
    Choice("code", "H", tuple(Code)),
    Text("detail", 200, cut=True),
)
_TABLE = Layout(
    Integer("count", "H", 0, MAX_ENTRIES),
    Raw("digest", 8),
)
_ENTRY = Layout(
    Integer("up_to", "Q", 1, MAX_BYTES),
    Choice("algorithm", "B", get_args(Carrier)),
    Integer("blocks", "H", 0, MAX_BLOCKS),
    Integer("lanes", "H", 0, MAX_LANES),
)
_NO_DIGEST = bytes(8)

_BODY = _PREAMBLE.size + _HEADER.size
_END = FRAME_BYTES - _CHECKSUM_BYTES

R = TypeVar("R", Facts, SlabOffer, Verdict, TableOffer)
_KINDS: dict[type, Kind] = {
    Facts: Kind.FACTS,
    SlabOffer: Kind.SLAB,
    Verdict: Kind.VERDICT,
    TableOffer: Kind.TABLE,
}


def encode_facts(facts: Facts, *, nonce: bytes) -> bytes:
    """The frame of `facts`, sent by `facts.rank`; its texts for reading are cut to size.

    Raises:
        WireError: a value that no frame can carry; so do the others.
    """
    if len(facts.links) > MAX_LINKS:
        raise WireError(f"{len(facts.links)}, expected at most {MAX_LINKS}", field="links")
    links = b"".join(_LINK.pack(vars(link)) for link in facts.links)
    body = _FACTS.pack(vars(facts)) + links
    return _frame(Kind.FACTS, body, nonce=nonce, rank=facts.rank, world=facts.world)


def encode_slab(offer: SlabOffer, *, nonce: bytes, rank: int, world: int) -> bytes:
    """The frame of `offer`, sent by `rank` of `world`."""
    return _frame(Kind.SLAB, _SLAB.pack(vars(offer)), nonce=nonce, rank=rank, world=world)


def encode_verdict(verdict: Verdict, *, nonce: bytes, rank: int, world: int) -> bytes:
    """The frame of `verdict`, sent by `rank` of `world`."""
    return _frame(Kind.VERDICT, _VERDICT.pack(vars(verdict)), nonce=nonce, rank=rank, world=world)


def encode_table(offer: TableOffer, *, nonce: bytes, rank: int, world: int) -> bytes:
    """The frame of `offer`, sent by `rank` of `world`."""
    entries = () if offer.table is None else offer.table.entries
    digest = _NO_DIGEST if offer.table is None else offer.table.digest()
    body = _TABLE.pack({"count": len(entries), "digest": digest})
    body += b"".join(_ENTRY.pack(vars(entry)) for entry in entries)
    return _frame(Kind.TABLE, body, nonce=nonce, rank=rank, world=world)


def read_header(frame: bytes) -> Header:
    """The header of a whole and intact frame of any kind.

    Raises:
        WireError: anything else; `field` says which part is wrong.
    """
    if len(frame) != FRAME_BYTES:
        raise WireError(f"{len(frame)} bytes, expected {FRAME_BYTES}", field="frame")
    # The version first: another one may compute its checksum in another way.
    _PREAMBLE.unpack(frame[: _PREAMBLE.size])
    if frame[_END:] != _checksum(frame[:_END]):
        raise WireError("does not match the frame", field="checksum")
    header = Header(**_HEADER.unpack(frame[_PREAMBLE.size : _BODY]))
    _check_rank(header.rank, header.world)
    if header.length > _END - _BODY or any(frame[_BODY + header.length : _END]):
        raise WireError(f"{header.length} does not end the body", field="length")
    return header


def decode(
    frame: bytes,
    record: type[R],
    *,
    nonce: bytes | None = None,
    rank: int | None = None,
    world: int | None = None,
) -> R:
    """Read one frame as a `Facts`, `SlabOffer`, `Verdict` or `TableOffer`, as `record` says.

    Args:
        frame: any bytes.
        record: the type that the exchange has reached.
        nonce: the job's nonce, where it is known by now.
        rank: the rank whose place in the gather the frame took.
        world: the group's size.

    Raises:
        WireError: the frame is not one of these; `field` says which part is wrong.
    """
    frame = bytes(frame)
    header = read_header(frame)
    if header.kind is not _KINDS[record]:
        raise WireError(f"{header.kind.name}, expected {_KINDS[record].name}", field="kind")
    for field, expected in (("nonce", nonce), ("rank", rank), ("world", world)):
        value = getattr(header, field)
        if expected is not None and value != expected:
            raise WireError(f"{_show(value)}, expected {_show(expected)}", field=field)
    body = frame[_BODY : _BODY + header.length]
    if record is Facts:
        return _read_facts(header, body)
    if record is TableOffer:
        return _read_table(body)
    layout = _SLAB if record is SlabOffer else _VERDICT
    _check_length(len(body) == layout.size, len(body))
    return record(**layout.unpack(body))


def _read_facts(header: Header, body: bytes) -> Facts:
    fixed, links = body[: _FACTS.size], body[_FACTS.size :]
    _check_length(len(fixed) == _FACTS.size, len(body))
    _check_length(not len(links) % _LINK.size, len(body))
    _check_length(len(links) <= MAX_LINKS * _LINK.size, len(body))
    starts = range(0, len(links), _LINK.size)
    return Facts(
        **_FACTS.unpack(fixed),
        rank=header.rank,
        world=header.world,
        links=tuple(Link(**_LINK.unpack(links[at : at + _LINK.size])) for at in starts),
    )


def _read_table(body: bytes) -> TableOffer:
    head, rows = body[: _TABLE.size], body[_TABLE.size :]
    _check_length(len(head) == _TABLE.size, len(body))
    fields = _TABLE.unpack(head)
    _check_length(len(rows) == fields["count"] * _ENTRY.size, len(body))
    starts = range(0, len(rows), _ENTRY.size)
    entries = tuple(Entry(**_ENTRY.unpack(rows[at : at + _ENTRY.size])) for at in starts)
    try:
        table = Table(entries, "tuned") if entries else None
    except TableError as error:
        raise WireError(str(error), field="entries") from error
    if fields["digest"] != (_NO_DIGEST if table is None else table.digest()):
        raise WireError("does not match the entries", field="digest")
    return TableOffer(table)


def _frame(kind: Kind, body: bytes, *, nonce: bytes, rank: int, world: int) -> bytes:
    header: dict[str, Any] = {
        "magic": b"PYAR",
        "version": WIRE_VERSION,
        "kind": kind,
        "length": len(body),
        "nonce": nonce,
        "rank": rank,
        "world": world,
    }
    head = _PREAMBLE.pack(header) + _HEADER.pack(header)
    _check_rank(rank, world)
    frame = (head + body).ljust(_END, b"\0")
    return frame + _checksum(frame)


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM_BYTES).digest()


def _check_rank(rank: int, world: int) -> None:
    if rank >= world:
        raise WireError(f"{rank}, expected less than the world's {world}", field="rank")


def _check_length(right: bool, length: int) -> None:
    if not right:
        raise WireError(f"{length} does not fit the kind", field="length")


def _show(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
