# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Frames: what is sent arrives, and anything else is a WireError that names a field."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyallreduce import wire
from pyallreduce.errors import WireError
from pyallreduce.facts import Facts, Link
from pyallreduce.reasons import Code, Reason
from pyallreduce.table import MAX_BYTES, MAX_LANES, Entry, Table
from pyallreduce.wire import FRAME_BYTES, MAX_LINKS, SlabOffer, TableOffer, Verdict, decode

NONCE = bytes(range(16))
RECORDS: tuple[Any, ...] = (Facts, SlabOffer, Verdict, TableOffer)

ascii_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=32)
bits = st.integers(0, FRAME_BYTES * 8 - 1)


def words(size: int) -> st.SearchStrategy[str]:
    """Text that needs no cutting: printable, and at most `size` bytes of UTF-8."""
    letters = st.characters(exclude_categories=["Cc", "Cs"])
    return st.text(letters, max_size=size).filter(lambda text: len(text.encode()) <= size)


links = st.builds(
    Link,
    peer_uuid=ascii_text,
    access=st.booleans(),
    nvlink=st.integers(0, 255),
    error=words(44),
)
all_facts = st.integers(1, 65_535).flatmap(
    lambda world: st.builds(
        Facts,
        rank=st.integers(0, world - 1),
        world=st.just(world),
        target=st.sampled_from(["cuda", "host"]),
        module=st.sampled_from(["cuda", "host", "missing", "broken"]),
        protocol=st.integers(0, 65_535),
        boot_id=ascii_text,
        pid=st.integers(1, 2**31 - 1),
        pid_namespace=st.integers(0, 2**64 - 1),
        gpu_uuid=ascii_text,
        gpu_name=words(96),
        bus_id=ascii_text,
        capability=st.integers(0, 999),
        sm_count=st.integers(0, 65_535),
        driver_cuda=st.integers(0, 999_999),
        build_cuda=st.integers(0, 999_999),
        backend=st.sampled_from(["auto", "native", "nccl"]),
        config_digest=st.binary(min_size=8, max_size=8),
        links=st.lists(links, max_size=MAX_LINKS).map(tuple),
        error=words(200),
    )
)
offers = st.builds(
    SlabOffer,
    handle=st.binary(min_size=64, max_size=64),
    slab_bytes=st.integers(1, 2**48),
    pid=st.integers(1, 2**31 - 1),
    start_time=st.integers(0, 2**64 - 1),
    slab_fd=st.integers(-1, 2**31 - 1),
    slab_inode=st.integers(0, 2**64 - 1),
    page_fd=st.integers(-1, 2**31 - 1),
    page_inode=st.integers(0, 2**64 - 1),
    nonce=st.binary(min_size=16, max_size=16),
)
verdicts = st.builds(
    Verdict, stage=st.integers(0, 65_535), code=st.sampled_from(Code), detail=words(200)
)
entries = st.builds(
    Entry,
    up_to=st.integers(1, MAX_BYTES),
    algorithm=st.sampled_from(["one_shot", "two_shot", "nccl"]),
    blocks=st.integers(0, 1024),
    lanes=st.integers(0, MAX_LANES // 32).map(lambda warps: 32 * warps),
)
tables = st.lists(entries, min_size=1, max_size=64, unique_by=lambda e: e.up_to).map(
    lambda rows: Table(tuple(sorted(rows, key=lambda e: e.up_to)), "tuned")
)
table_offers = st.builds(TableOffer, table=st.none() | tables)
records = st.one_of(all_facts, offers, verdicts, table_offers)

OFFER = SlabOffer(
    handle=bytes(64),
    slab_bytes=64 << 20,
    pid=4242,
    start_time=123_456,
    slab_fd=7,
    slab_inode=99,
    page_fd=8,
    page_inode=100,
    nonce=NONCE,
)
VERDICT = Verdict(stage=3, code=Code.IPC_OPEN, detail="rank 1 (GPU-1a2b3c4d)")


def encode(
    record: Facts | SlabOffer | Verdict | TableOffer, rank: int = 1, world: int = 2
) -> bytes:
    if isinstance(record, Facts):
        return wire.encode_facts(record, nonce=NONCE)
    if isinstance(record, SlabOffer):
        return wire.encode_slab(record, nonce=NONCE, rank=rank, world=world)
    if isinstance(record, TableOffer):
        return wire.encode_table(record, nonce=NONCE, rank=rank, world=world)
    return wire.encode_verdict(record, nonce=NONCE, rank=rank, world=world)


def seal(frame: bytes) -> bytes:
    """The frame with a checksum that fits, as a faulty but orderly peer would send it."""
    return frame[:-8] + hashlib.blake2b(frame[:-8], digest_size=8).digest()


def patch(frame: bytes, at: int, new: bytes) -> bytes:
    return seal(frame[:at] + new + frame[at + len(new) :])


def assert_canonical_or_refused(frame: bytes) -> None:
    """The promise to the exchange: a WireError, or a record whose frame is this one."""
    for record in RECORDS:
        with contextlib.suppress(WireError):
            got: Any = decode(frame, record, nonce=NONCE)
            header = wire.read_header(frame)
            assert encode(got, header.rank, header.world) == frame


@given(records)
def test_what_is_sent_arrives(record: Any) -> None:
    frame = encode(record)
    assert len(frame) == FRAME_BYTES
    header = wire.read_header(frame)
    rank, world = header.rank, header.world
    assert decode(frame, type(record), nonce=NONCE, rank=rank, world=world) == record
    for other in RECORDS:
        if other is not type(record):
            with pytest.raises(WireError, match=r"^kind: "):
                decode(frame, other)


@given(records, bits)
def test_any_flipped_bit_is_refused(record: Any, bit: int) -> None:
    frame = bytearray(encode(record))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError):
        decode(bytes(frame), type(record))


@given(records, bits, st.binary(min_size=1, max_size=8))
def test_a_wrong_value_under_a_right_checksum(record: Any, bit: int, new: bytes) -> None:
    frame = encode(record)
    assert_canonical_or_refused(patch(frame, min(bit // 8, FRAME_BYTES - 16), new))


@given(records, st.integers(0, FRAME_BYTES - 1))
def test_a_truncated_frame_is_refused(record: Any, length: int) -> None:
    frame = encode(record)
    for short in (frame[:length], frame[length + 1 :], frame + b"\0"):
        with pytest.raises(WireError, match="frame"):
            decode(short, type(record))


@given(st.binary(max_size=FRAME_BYTES + 64))
def test_any_bytes_are_refused(data: bytes) -> None:
    for record in RECORDS:
        with pytest.raises(WireError):
            decode(data, record)


@given(st.binary(max_size=FRAME_BYTES), st.integers(0, 3), st.integers(0, FRAME_BYTES))
def test_any_body_under_a_right_header(body: bytes, kind: int, length: int) -> None:
    header = b"PYAR" + wire.WIRE_VERSION.to_bytes(2, "little") + kind.to_bytes(2, "little")
    header += length.to_bytes(4, "little") + NONCE + bytes([1, 0, 2, 0])
    frame = (header + body).ljust(FRAME_BYTES, b"\0")[:FRAME_BYTES]
    assert_canonical_or_refused(seal(frame))


@pytest.mark.parametrize(
    ("at", "new", "field"),
    [
        (0, b"PYAS", "magic"),
        (4, b"\1\0", "version"),
        (6, b"\7\0", "kind"),
        (8, b"\0\0\0\0", "length"),
        (8, b"\xff\xff\0\0", "length"),
        (12, b"\xff", "nonce"),
        (28, b"\0\0", "rank"),
        (28, b"\2\0", "rank"),
        (30, b"\0\0", "world"),
        (30, b"\3\0", "world"),
        (32 + 2, b"\xff\xff", "code"),
        (32 + 4, b"\xff", "detail"),
        (32 + 4, b"\x1b", "detail"),
        (32 + 4 + 200, b"x", "length"),
    ],
)
def test_a_refusal_names_the_field(at: int, new: bytes, field: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(patch(encode(VERDICT), at, new), Verdict, nonce=NONCE, rank=1, world=2)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def test_a_wrong_checksum_is_named() -> None:
    frame = encode(VERDICT)
    with pytest.raises(WireError, match="checksum"):
        decode(frame[:-1] + bytes([frame[-1] ^ 1]), Verdict)


def test_the_version_is_told_before_the_checksum() -> None:
    frame = encode(VERDICT)
    with pytest.raises(WireError, match="version"):
        decode(frame[:4] + b"\x09\0" + frame[6:], Verdict)


def test_the_nonce_can_be_learned_from_a_frame() -> None:
    header = wire.read_header(encode(VERDICT))
    assert header == wire.Header(wire.Kind.VERDICT, 204, NONCE, rank=1, world=2)


def test_buffers_decode_like_bytes() -> None:
    frame = encode(VERDICT)
    for buffer in (bytearray(frame), memoryview(frame)):
        assert decode(buffer, Verdict) == VERDICT  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"handle": bytes(63)}, "handle"),
        ({"slab_bytes": 0}, "slab_bytes"),
        ({"slab_bytes": 2**48 + 1}, "slab_bytes"),
        ({"pid": 0}, "pid"),
        ({"slab_fd": -2}, "slab_fd"),
        ({"page_fd": 2**31}, "page_fd"),
        ({"slab_inode": -1}, "slab_inode"),
        ({"start_time": 1.5}, "start_time"),
        ({"nonce": "0" * 16}, "nonce"),
    ],
    ids=str,
)
def test_a_sender_refuses_what_a_peer_would(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(WireError) as caught:
        encode(dataclasses.replace(OFFER, **changes))
    assert caught.value.field == field


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), (0, 2**16)])
def test_a_sender_is_a_member(rank: int, world: int) -> None:
    with pytest.raises(WireError, match=r"^(rank|world): "):
        encode(OFFER, rank, world)


@given(all_facts, st.text(max_size=300))
def test_words_are_cut_at_a_letter(facts: Facts, text: str) -> None:
    sent = dataclasses.replace(facts, gpu_name=text, error=text)
    got = decode(encode(sent), Facts)
    assert len(got.error.encode()) <= 200
    # What arrives needs no more cutting.
    assert decode(encode(got), Facts) == got


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=201))
def test_a_long_detail_keeps_its_beginning(detail: str) -> None:
    got = decode(encode(Verdict(0, Code.STAGE_FAILED, detail)), Verdict)
    assert detail.startswith(got.detail)
    assert len(got.detail.encode()) > 196
    assert got.reason == Reason(Code.STAGE_FAILED, got.detail)


@pytest.mark.parametrize("name", ["boot_id", "gpu_uuid", "bus_id"])
@pytest.mark.parametrize("text", ["x" * 65, "a\0b", "a\n", "\ud800"], ids=ascii)
@given(facts=all_facts)
def test_an_identity_is_never_altered(name: str, text: str, facts: Facts) -> None:
    changes: dict[str, Any] = {name: text}
    with pytest.raises(WireError, match=name):
        encode(dataclasses.replace(facts, **changes))


@given(facts=all_facts)
def test_too_many_links_are_refused(facts: Facts) -> None:
    many = (Link("GPU-1", access=True, nvlink=0),) * (MAX_LINKS + 1)
    with pytest.raises(WireError, match="links"):
        encode(dataclasses.replace(facts, links=many))
