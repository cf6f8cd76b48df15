# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The checker gives the known verdicts on the textbook's tests, before it is believed on ours."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import z3

from tests.litmus.ptx import Litmus, Scope, Sem, Thread

Where = Literal["same cta", "same gpu", "two gpus"]
FORBIDDEN, ALLOWED = False, True
OPPOSITE: dict[Sem, Sem] = {"release": "acquire"}


def threads(litmus: Litmus, count: int, where: Where) -> list[Thread]:
    device = {"same cta": 0, "same gpu": 0, "two gpus": 1}[where]
    return [
        litmus.thread(device * (i % 2), 0 if where == "same cta" else None) for i in range(count)
    ]


MP: list[tuple[Where, str, Scope, bool]] = [
    ("two gpus", "relaxed", "sys", ALLOWED),
    ("same cta", "relaxed", "cta", ALLOWED),
    ("two gpus", "release", "sys", FORBIDDEN),
    ("two gpus", "release", "gpu", ALLOWED),
    ("same gpu", "release", "gpu", FORBIDDEN),
    ("same gpu", "release", "cta", ALLOWED),
    ("same cta", "release", "cta", FORBIDDEN),
    ("two gpus", "fences", "sys", FORBIDDEN),
    ("two gpus", "fences", "gpu", ALLOWED),
    ("same gpu", "fences", "gpu", FORBIDDEN),
    ("two gpus", "fence of the writer", "sys", ALLOWED),
    ("two gpus", "fence of the reader", "sys", ALLOWED),
    ("two gpus", "release, weak read", "sys", ALLOWED),
    ("two gpus", "weak write, acquire", "sys", ALLOWED),
    ("two gpus", "fence of the writer, acquire", "sys", FORBIDDEN),
    ("two gpus", "release, fence of the reader", "sys", FORBIDDEN),
]


@pytest.mark.parametrize(("where", "kind", "scope", "verdict"), MP)
@pytest.mark.parametrize("data", ["weak", "relaxed"])
def test_message_passing(where: Where, kind: str, scope: Scope, verdict: bool, data: Sem) -> None:
    litmus = Litmus()
    writer, reader = threads(litmus, 2, where)
    writer.st("data", 1, data, scope)
    if kind in ("fences", "fence of the writer", "fence of the writer, acquire"):
        writer.fence("acq_rel", scope)
    released: Sem = "release" if kind.startswith("release") else "relaxed"
    writer.st("flag", 1, "weak" if kind.startswith("weak") else released, scope)
    acquired: Sem = "acquire" if kind == "release" or kind.endswith("acquire") else "relaxed"
    flag = reader.ld("flag", "weak" if kind.endswith("weak read") else acquired, scope)
    if kind == "fences" or kind.endswith("fence of the reader"):
        reader.fence("acq_rel", scope)
    seen = reader.ld("data", data, scope)
    assert litmus.allows(lambda x: z3.And(x.reads(flag, 1), x.reads(seen, 0))) is verdict
    # The good outcome is always possible: the axioms are not merely contradictory.
    assert litmus.allows(lambda x: z3.And(x.reads(flag, 1), x.reads(seen, 1)))


SB: list[tuple[Where, str, Scope, bool]] = [
    ("two gpus", "relaxed", "sys", ALLOWED),
    ("two gpus", "release", "sys", ALLOWED),
    ("two gpus", "acq_rel", "sys", ALLOWED),
    ("two gpus", "sc", "sys", FORBIDDEN),
    ("two gpus", "sc", "gpu", ALLOWED),
    ("same gpu", "sc", "gpu", FORBIDDEN),
    ("same gpu", "sc", "cta", ALLOWED),
    ("same cta", "sc", "cta", FORBIDDEN),
]


@pytest.mark.parametrize(("where", "kind", "scope", "verdict"), SB)
def test_store_buffering(where: Where, kind: Sem, scope: Scope, verdict: bool) -> None:
    litmus = Litmus()
    seen = []
    for thread, (mine, other) in zip(threads(litmus, 2, where), ("xy", "yx"), strict=True):
        fenced = kind in ("acq_rel", "sc")
        thread.st(mine, 1, "relaxed" if fenced else kind, scope)
        if fenced:
            thread.fence(kind, scope)
        seen.append(thread.ld(other, "relaxed" if fenced else OPPOSITE.get(kind, kind), scope))
    assert litmus.allows(lambda x: z3.And([x.reads(r, 0) for r in seen])) is verdict
    assert litmus.allows(lambda x: z3.And([x.reads(r, 1) for r in seen]))


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("relaxed", ALLOWED),
        ("one dependency", ALLOWED),
        ("dependencies", FORBIDDEN),
        ("release", FORBIDDEN),
        ("fences", FORBIDDEN),
    ],
)
def test_load_buffering(kind: str, verdict: bool) -> None:
    litmus = Litmus()
    seen = []
    for thread, (mine, other) in zip(threads(litmus, 2, "two gpus"), ("xy", "yx"), strict=True):
        read = thread.ld(mine, "acquire" if kind == "release" else "relaxed")
        if kind == "fences":
            thread.fence("acq_rel")
        write = thread.st(other, 1, "release" if kind == "release" else "relaxed")
        if kind == "dependencies" or (kind == "one dependency" and mine == "x"):
            litmus.depends.append((read, write))
        seen.append(read)
    assert litmus.allows(lambda x: z3.And([x.reads(r, 1) for r in seen])) is verdict


@pytest.mark.parametrize(
    ("kind", "scope", "verdict"),
    [
        ("relaxed", "sys", ALLOWED),
        ("release", "sys", ALLOWED),
        ("acq_rel", "sys", ALLOWED),
        ("sc", "sys", FORBIDDEN),
        ("sc", "gpu", ALLOWED),
    ],
)
def test_independent_reads_of_independent_writes(kind: Sem, scope: Scope, verdict: bool) -> None:
    litmus = Litmus()
    fenced = kind in ("acq_rel", "sc")
    for thread, place in zip(threads(litmus, 2, "two gpus"), "xy", strict=True):
        thread.st(place, 1, "relaxed" if fenced else kind)
    outcome: list[tuple[Any, int]] = []
    for thread, order in zip(threads(litmus, 2, "two gpus"), ("xy", "yx"), strict=True):
        read: Sem = "acquire" if kind == "release" else "relaxed"
        outcome.append((thread.ld(order[0], read), 1))
        if fenced:
            thread.fence(kind, scope)
        outcome.append((thread.ld(order[1], read), 0))
    assert litmus.allows(lambda x: z3.And([x.reads(r, v) for r, v in outcome])) is verdict


@pytest.mark.parametrize(
    ("where", "sem", "scope", "verdict"),
    [
        ("two gpus", "relaxed", "sys", FORBIDDEN),
        ("two gpus", "relaxed", "gpu", ALLOWED),
        ("same gpu", "relaxed", "gpu", FORBIDDEN),
        ("same gpu", "relaxed", "cta", ALLOWED),
        ("same cta", "relaxed", "cta", FORBIDDEN),
        ("same cta", "weak", "cta", ALLOWED),
    ],
)
def test_coherence_of_two_reads(where: Where, sem: Sem, scope: Scope, verdict: bool) -> None:
    litmus = Litmus()
    writer, reader = threads(litmus, 2, where)
    writer.st("x", 1, sem, scope)
    first, second = reader.ld("x", sem, scope), reader.ld("x", sem, scope)
    assert litmus.allows(lambda x: z3.And(x.reads(first, 1), x.reads(second, 0))) is verdict


def test_coherence_within_a_thread() -> None:
    litmus = Litmus()
    thread = litmus.thread()
    before = thread.ld("x")
    one = thread.st("x", 1)
    after = thread.ld("x")
    thread.st("x", 2)
    assert not litmus.allows(lambda x: x.reads(before, 1))
    assert not litmus.allows(lambda x: x.reads(after, 0))
    assert not litmus.allows(lambda x: x.reads(after, 2))
    assert not litmus.allows(lambda x: x.last(one))
    assert litmus.allows(lambda x: z3.And(x.reads(before, 0), x.reads(after, 1)))


@pytest.mark.parametrize(("first", "verdict"), [("relaxed", FORBIDDEN), ("weak", ALLOWED)])
def test_write_to_read_causality(first: Sem, verdict: bool) -> None:
    litmus = Litmus()
    a, b, c = threads(litmus, 3, "two gpus")
    a.st("x", 1, first)
    seen = b.ld("x", first)
    b.st("y", 1, "release")
    flag, stale = c.ld("y", "acquire"), c.ld("x", "relaxed")
    assert (
        litmus.allows(lambda x: z3.And(x.reads(seen, 1), x.reads(flag, 1), x.reads(stale, 0)))
        is verdict
    )


@pytest.mark.parametrize(("fence", "verdict"), [("acq_rel", ALLOWED), ("sc", FORBIDDEN)])
def test_two_plus_two_writes(fence: Sem, verdict: bool) -> None:
    litmus = Litmus()
    first = []
    for thread, (mine, other) in zip(threads(litmus, 2, "two gpus"), ("xy", "yx"), strict=True):
        first.append(thread.st(mine, 1, "relaxed"))
        thread.fence(fence)
        thread.st(other, 2, "relaxed")
    assert litmus.allows(lambda x: z3.And([x.last(w) for w in first])) is verdict


@pytest.mark.parametrize(
    ("where", "scope", "verdict"),
    [
        ("same gpu", "gpu", FORBIDDEN),
        ("same gpu", "cta", ALLOWED),
        ("two gpus", "gpu", ALLOWED),
        ("two gpus", "sys", FORBIDDEN),
    ],
)
def test_an_exchange_has_one_winner(where: Where, scope: Scope, verdict: bool) -> None:
    litmus = Litmus()
    seen = [t.exchange("lock", 1, "relaxed", scope) for t in threads(litmus, 2, where)]
    assert litmus.allows(lambda x: z3.And([x.reads(r, 0) for r in seen])) is verdict
    assert litmus.allows(lambda x: x.reads(seen[0], 1))


def test_an_atomic_passes_a_release_on() -> None:
    litmus = Litmus()
    a, b, c = threads(litmus, 3, "two gpus")
    a.st("data", 1)
    a.st("flag", 1, "release")
    passed = b.exchange("flag", 2, "relaxed", "sys")
    flag, stale = c.ld("flag", "acquire"), c.ld("data")
    bad = [(passed, 1), (flag, 2), (stale, 0)]
    assert not litmus.allows(lambda x: z3.And([x.reads(r, v) for r, v in bad]))
