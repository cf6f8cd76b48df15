# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Every way in which ranks communicate through csrc/protocol/memory.h, judged by the axioms.

Rank p is GPU 0, rank q is GPU 1. Locations are words; 0 stands for the sentinel, and for "not yet".
A test is named after what must hold, and says where relaxed operations are enough, where they are
not, and what only the stated assumption gives (`Boundary.PERFORMED`).
"""

from __future__ import annotations

from typing import Any

import pytest
import z3

from tests.litmus.memory_header import HEADER, Memory, lap_steps
from tests.litmus.ptx import Boundary, Litmus, Scope

P, Q = 0, 1
MEMORY = Memory()
run = MEMORY.run
# The assumption is about grids that wait for the grid before: without the wait there is none.
ASSUMED = Boundary.PERFORMED if MEMORY.waits_for_the_grid_before else Boundary.NOTHING


# ---- data and signatures -------------------------------------------------------------------------


def test_data_that_arrived_do_not_go_away() -> None:
    """Two polls of one word: relaxed at system scope is enough."""
    litmus = Litmus()
    run(litmus.thread(Q), "st_relaxed_sys", "box", 1)
    p = litmus.thread(P)
    poll = [run(p, "ld_relaxed_sys", "box") for _ in range(2)]
    assert not litmus.name(first=poll[0], second=poll[1]).may_read(first=1, second=0)


def test_the_words_of_a_vector_arrive_one_by_one() -> None:
    """So every word is looked at, and each is its own arrival."""
    litmus = Litmus()
    q, p = litmus.thread(Q), litmus.thread(P)
    for word in ("box.0", "box.1"):
        run(q, "st_relaxed_sys", word, 1)
    seen = litmus.name(a=run(p, "ld_relaxed_sys", "box.1"), b=run(p, "ld_relaxed_sys", "box.0"))
    assert seen.may_read(a=1, b=0)
    assert seen.may_read(a=0, b=1)


def test_a_signature_is_no_proof_of_the_data() -> None:
    """Nothing orders the two: a block waits for both, in no order."""
    litmus = Litmus()
    q, p = litmus.thread(Q), litmus.thread(P)
    run(q, "st_relaxed_sys", "box", 1)
    run(q, "st_relaxed_sys", "signature", 1)
    seen = litmus.name(
        signature=run(p, "ld_relaxed_sys", "signature"),
        box=run(p, "ld_relaxed_sys", "box"),
    )
    assert seen.may_read(signature=1, box=0)


def test_a_result_needs_no_order_with_its_shards() -> None:
    """Two-shot: the result is computed from the shards, so it can't be there before them."""
    litmus = Litmus()
    run(litmus.thread(Q), "st_relaxed_sys", "shard", 1)
    owner = litmus.thread(P)
    shard = run(owner, "ld_relaxed_sys", "shard")
    result = run(owner, "st_relaxed_sys", "result", 1)
    litmus.depends.append((shard, result))
    reader = litmus.thread(2)
    seen = litmus.name(shard=shard, result=run(reader, "ld_relaxed_sys", "result"))
    assert seen.may_read(shard=1, result=1)


# ---- re-arming -----------------------------------------------------------------------------------


def rearm_and_next_push(boundary: Boundary, *, same_grid: bool = False) -> tuple[Litmus, Any]:
    """p reads and re-arms in call 1 and signs call 2; q hears that in call 2 and pushes call 3."""
    litmus = Litmus(boundary)
    q1, q2 = litmus.thread(Q, grid=1), litmus.thread(Q, grid=2)
    q3 = q2 if same_grid else litmus.thread(Q, grid=3)
    p1, p2 = litmus.thread(P, grid=1), litmus.thread(P, grid=2)
    run(q1, "st_relaxed_sys", "box", 1)
    read = run(p1, "ld_relaxed_sys", "box")
    armed = run(p1, "st_relaxed_sys", "box", 0)
    run(p2, "st_relaxed_sys", "signature", 2)
    heard = run(q2, "ld_relaxed_sys", "signature")
    pushed = run(q3, "st_relaxed_sys", "box", 3)
    litmus.depends.append((heard, pushed))
    return litmus, (read, armed, heard, pushed)


def lost(litmus: Litmus, events: Any) -> bool:
    """The push of call 3 vanishes under the re-arming of call 1."""
    read, armed, heard, _ = events
    return litmus.allows(lambda x: z3.And(x.reads(read, 1), x.reads(heard, 2), x.last(armed)))


def early(litmus: Litmus, events: Any) -> bool:
    """Call 1 reads what was pushed for call 3."""
    read, _, heard, _ = events
    return litmus.allows(lambda x: z3.And(x.reads(read, 3), x.reads(heard, 2)))


def test_rearming_is_before_the_next_push() -> None:
    case = rearm_and_next_push(ASSUMED)
    assert not lost(*case)
    assert not early(*case)


@pytest.mark.parametrize("boundary", [Boundary.NOTHING, Boundary.LOCAL])
def test_the_axioms_alone_allow_the_overwrite(boundary: Boundary) -> None:
    """Exactly here the protocol rests on its assumption: order within p's device is not enough,
    since the signature is relaxed and carries no causality to q."""
    assert lost(*rearm_and_next_push(boundary))


def test_the_assumption_is_needed_at_both_ends() -> None:
    """A push in the very grid that heard the signature has no boundary behind it: this is why the
    laps of a launch have release and acquire, and chunks are launches."""
    assert lost(*rearm_and_next_push(Boundary.PERFORMED, same_grid=True))


@pytest.mark.parametrize(("scope", "safe"), [("sys", True), ("gpu", False)])
def test_fences_would_do_without_the_assumption(scope: Scope, safe: bool) -> None:
    """What the assumption saves: a fence of system scope a call at either end."""
    litmus = Litmus(Boundary.LOCAL)
    p1, p2 = litmus.thread(P, grid=1), litmus.thread(P, grid=2)
    q2, q3 = litmus.thread(Q, grid=2), litmus.thread(Q, grid=3)
    armed = run(p1, "st_relaxed_sys", "box", 0)
    p2.fence("acq_rel", scope)
    run(p2, "st_relaxed_sys", "signature", 2)
    heard = run(q2, "ld_relaxed_sys", "signature")
    q2.fence("acq_rel", scope)
    run(q3, "st_relaxed_sys", "box", 3)
    assert litmus.allows(lambda x: z3.And(x.reads(heard, 2), x.last(armed))) is not safe


@pytest.mark.parametrize(
    ("boundary", "stale"), [(ASSUMED, False), (Boundary.LOCAL, False), (Boundary.NOTHING, True)]
)
def test_a_later_call_does_not_read_what_was_rearmed(boundary: Boundary, stale: bool) -> None:
    """Another thread of p reads the same word two calls later: stream order is enough."""
    litmus = Litmus(boundary)
    run(litmus.thread(Q, grid=1), "st_relaxed_sys", "box", 1)
    p1, p3 = litmus.thread(P, grid=1), litmus.thread(P, grid=3)
    first = run(p1, "ld_relaxed_sys", "box")
    run(p1, "st_relaxed_sys", "box", 0)
    seen = litmus.name(first=first, third=run(p3, "ld_relaxed_sys", "box"))
    assert seen.may_read(first=1, third=1) is stale


@pytest.mark.parametrize(("boundary", "stale"), [(ASSUMED, False), (Boundary.NOTHING, True)])
def test_the_next_grid_reads_the_advanced_epoch(boundary: Boundary, stale: bool) -> None:
    litmus = Litmus(boundary)
    run(litmus.thread(P, grid=1), "st_relaxed_sys", "epoch", 1)
    seen = litmus.name(epoch=run(litmus.thread(P, grid=2), "ld_relaxed_sys", "epoch"))
    assert seen.may_read(epoch=0) is stale


@pytest.mark.parametrize("meets", [True, False])
def test_a_lane_does_not_read_the_epoch_advanced_in_its_own_call(meets: bool) -> None:
    """The owner's lane advances it behind a barrier of the block, while data are awaited."""
    litmus = Litmus(ASSUMED)
    lane, owner = litmus.thread(P, cta=0, grid=1), litmus.thread(P, cta=0, grid=1)
    seen = litmus.name(epoch=run(lane, "ld_relaxed_sys", "epoch"))
    if meets:
        litmus.barrier(lane, owner)
    run(owner, "st_relaxed_sys", "epoch", 1)
    assert seen.may_read(epoch=1) is not meets


# ---- laps ----------------------------------------------------------------------------------------

SENDS, CHECKS = lap_steps()


def lap_and_next_push(
    sends: tuple[str, ...],
    checks: tuple[str, ...],
    *,
    p_meets: bool = True,
    q_meets: bool = True,
    rearmed_before: bool = False,
) -> tuple[Litmus, Any]:
    """A lane of p reads and re-arms in lap 1, p's signer sends the signature of lap 2; q's signer
    reads it, and a lane of q pushes lap 3. `rearmed_before`: lap 1 was a call of its own, so that
    p's boundary stands in the place of its barrier."""
    litmus = Litmus(ASSUMED)
    p = litmus.thread(P, cta=0, grid=1)
    p_signer = litmus.thread(P, cta=0, grid=2 if rearmed_before else 1)
    q, q_signer = litmus.thread(Q, cta=0, grid=2), litmus.thread(Q, cta=0, grid=2)
    run(q, "st_relaxed_sys", "box", 1)
    read = run(p, "ld_relaxed_sys", "box")
    armed = run(p, "st_relaxed_sys", "box", 0)
    if p_meets and not rearmed_before:
        litmus.barrier(p, p_signer)
    for step in sends:
        run(p_signer, *(("st_relaxed_sys", "signature", 2) if step == "send" else (step,)))
    heard: Any = None  # by the poll
    for step in checks:
        event = run(q_signer, step, "signature")
        if step == "ld_relaxed_sys":
            heard = heard or event
    if q_meets:
        litmus.barrier(q, q_signer)
    pushed = run(q, "st_relaxed_sys", "box", 3)
    litmus.depends.append((heard, pushed))
    return litmus, (read, armed, heard, pushed)


def test_rearming_is_before_the_push_of_a_later_lap() -> None:
    """Within a launch, by release, acquire and barriers: no boundary lies between, nothing is
    assumed."""
    case = lap_and_next_push(SENDS, CHECKS)
    assert not lost(*case)
    assert not early(*case)
    litmus, (read, _, heard, pushed) = case
    assert litmus.allows(lambda x: z3.And(x.reads(read, 1), x.reads(heard, 2), x.last(pushed)))


@pytest.mark.parametrize(
    ("sends", "checks", "p_meets", "q_meets"),
    [
        (("send",), CHECKS, True, True),
        (("send", "fence_sys"), CHECKS, True, True),
        (SENDS, CHECKS[:1], True, True),
        (SENDS, CHECKS[::-1], True, True),
        (SENDS, CHECKS, False, True),
        (SENDS, CHECKS, True, False),
    ],
)
def test_a_lap_needs_its_fence_its_acquire_and_both_barriers(
    sends: tuple[str, ...], checks: tuple[str, ...], p_meets: bool, q_meets: bool
) -> None:
    assert lost(*lap_and_next_push(sends, checks, p_meets=p_meets, q_meets=q_meets))


@pytest.mark.parametrize(("checks", "safe"), [(CHECKS, True), (CHECKS[:1], False)])
def test_the_first_signature_needs_the_acquire_of_its_reader(
    checks: tuple[str, ...], safe: bool
) -> None:
    """Lap 1 of a launch takes the slot of the call before: p has its boundary, so that its first
    signature needs no fence, but q pushes in the very grid that reads it."""
    case = lap_and_next_push(("send",), checks, rearmed_before=True)
    assert lost(*case) is not safe
    assert early(*case) is not safe


# ---- failures ------------------------------------------------------------------------------------


def test_who_hears_of_a_failure_reads_its_whole_record() -> None:
    """The state word is released, and the host acquires it; so with the notice and the edges."""
    litmus = Litmus()
    kernel, host = litmus.thread(P), litmus.host()
    kernel.st("record", 1)
    run(kernel, "st_release_sys", "state", 1)
    state = host.ld("state", "acquire")
    seen = litmus.name(state=state, record=host.ld("record"))
    assert not seen.may_read(state=1, record=0)


def test_a_record_read_without_acquire_may_be_torn() -> None:
    """The negative control, and why Record.at() acquires."""
    litmus = Litmus()
    kernel, host = litmus.thread(P), litmus.host()
    kernel.st("record", 1)
    run(kernel, "st_release_sys", "state", 1)
    seen = litmus.name(state=host.ld("state"), record=host.ld("record"))
    assert seen.may_read(state=1, record=0)


def test_a_stop_word_says_nothing_of_the_record() -> None:
    """It is relaxed, behind the release: q may stop, and its host look at p's record, before that
    is written. So records.py looks again until a record names a cause."""
    litmus = Litmus()
    p, q, host = litmus.thread(P), litmus.thread(Q), litmus.host()
    run(p, "st_release_sys", "state of p", 1)
    run(p, "st_relaxed_sys", "stop of q", 1)
    stop = run(q, "ld_relaxed_sys", "stop of q")
    run(q, "st_release_sys", "state of q", 1)
    seen = litmus.name(stop=stop, own=host.ld("state of q", "acquire"), cause=host.ld("state of p"))
    assert seen.may_read(stop=1, own=1, cause=0)


def test_one_failure_of_a_generation_writes_the_record() -> None:
    """Blocks of one GPU; so with the notice, and with a block's owner word."""
    litmus = Litmus()
    lanes = [litmus.thread(P), litmus.thread(P)]
    old = [run(lane, "atom_exch_relaxed_gpu", "reporter", 1) for lane in lanes]
    assert not litmus.name(a=old[0], b=old[1]).may_read(a=0, b=0)


def absence(read: str, boundary: Boundary) -> Litmus:
    """q pushes, its grid ends, it closes; p's watchdog marks it absent; p's kernel hears that."""
    litmus = Litmus(boundary)
    run(litmus.thread(Q, grid=1), "st_relaxed_sys", "box", 1)
    # Synchronising with a stream is a boundary as well: its host stands for a grid behind it.
    closing = litmus.thread(Q, grid=2)
    closing.st("life", 1, "release")
    watchdog = litmus.host()
    left = watchdog.ld("life", "acquire")
    watchdog.st("absent", 1, "release")
    p = litmus.thread(P)
    absent = run(p, read, "absent")
    return litmus.name(left=left, absent=absent, box=run(p, "ld_relaxed_sys", "box"))


def test_what_an_absent_rank_sent_is_here() -> None:
    """The host's words are acquired: else a call that had all its data could be called absent."""
    assert not absence("ld_acquire_sys", ASSUMED).may_read(left=1, absent=1, box=0)


def test_host_words_must_be_acquired() -> None:
    assert absence("ld_relaxed_sys", Boundary.PERFORMED).may_read(left=1, absent=1, box=0)


# ---- the ping-pong -------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [True, False])
def test_a_round_is_not_overtaken_by_the_one_that_takes_its_slot(waits: bool) -> None:
    """q writes round 2 into the slot of round 0 when round 1 of p is here, and p sent that when it
    had read round 0. Relaxed is enough: each store depends on the read before it."""
    litmus = Litmus()
    p, q = litmus.thread(P), litmus.thread(Q)
    round_0 = run(p, "ld_relaxed_sys", "slot 0")
    answer = run(p, "st_relaxed_sys", "slot 1", 1)
    round_1 = run(q, "ld_relaxed_sys", "slot 1")
    again = run(q, "st_relaxed_sys", "slot 0", 2)
    if waits:
        litmus.depends += [(round_0, answer), (round_1, again)]
    seen = litmus.name(round_0=round_0, round_1=round_1)
    assert seen.may_read(round_0=2, round_1=1) is not waits


# ---- the header itself ---------------------------------------------------------------------------


def test_every_function_of_the_header_is_understood() -> None:
    names = {
        "ld_relaxed_sys",
        "ld_acquire_sys",
        "fence_sys",
        "st_relaxed_sys",
        "st_release_sys",
        "atom_exch_relaxed_gpu",
    }
    own = {"ld_weak", "st_weak"}  # of a rank's own message: no peer's
    assert set(MEMORY.functions) == names | own
    assert all(MEMORY.functions[name][0].sem == "weak" for name in own)
    for name in names:
        operations = MEMORY.functions[name]
        last = operations[-1]
        assert name.endswith(last.scope)
        assert (
            last.name == "fence"
            or name == f"{operations[0].name}_{last.sem}_{last.scope}"
            or (last.name == "atom" and name == f"atom_exch_{last.sem}_{last.scope}")
        )
    assert MEMORY.forms_agree
    assert MEMORY.waits_for_the_grid_before


def test_every_inline_instruction_of_the_protocol_is_in_the_header() -> None:
    for path in HEADER.parent.glob("*.h"):
        assert path == HEADER or "asm" not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("st.relaxed.sys.global.v4", "st.relaxed.gpu.global.v4"),
        ("st.relaxed.sys.global.u32", "st.relaxed.gpu.global.u32"),
        ("st.release.sys", "st.relaxed.sys"),
        ("ld.acquire.sys", "ld.relaxed.sys"),
        ("fence.acq_rel.sys", "fence.acq_rel.gpu"),
        ("griddepcontrol.wait;", "griddepcontrol.nop;"),
    ],
)
def test_a_weakened_header_is_seen(old: str, new: str) -> None:
    """The negative control of the reading itself."""
    text = HEADER.read_text(encoding="utf-8")
    assert old in text
    weak = Memory(text.replace(old, new))
    same = weak.functions == MEMORY.functions and weak.forms_agree
    assert not (same and weak.waits_for_the_grid_before)
