# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The mutants: one exact text of one file each, what stands there instead, and the test that must
fail then. A text that is gone, or stands twice, is an error: anchor the mutant anew.

Left out, because nobody could tell: on the host a block is one thread, which checks the signatures
before it sums, so that what only keeps its lanes together (`block.all`, `join`, the poison of an
output whose sum arrived) changes nothing there; two-shot's vectors behind the end are neither read
nor stored.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    """`killer`: a scenario of tests/native/scenarios.cpp, or a test as pytest names it. `quick`: of
    the subset that runs by default."""

    what: str
    path: str
    old: str
    new: str
    killer: str
    quick: bool = False

    @property
    def native(self) -> bool:
        return "::" not in self.killer

    @property
    def test(self) -> str:
        """The killer's name in full."""
        if not self.native:
            return self.killer
        return f"tests/native/test_scenarios.py::test_a_scenario_holds[{self.killer}-plain]"


_P = "csrc/protocol/"
_LITMUS = "tests/litmus/test_protocol.py::"
_WIRE = "tests/unit/test_wire.py::"
_SELECTOR = "tests/unit/test_selector.py::"
_VERDICTS = "tests/unit/test_verdicts.py::"
_VALIDATE = "tests/unit/test_validate.py::"

_PROTOCOL = [
    Mutant(
        "no fence between two calls (host)",
        _P + "memory.h",
        "(uint64_t /*early*/) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }",
        "(uint64_t /*early*/) {}",
        "sequences",
        quick=True,
    ),
    Mutant(
        "one slot",
        _P + "target.h",
        "constexpr uint32_t kSlots = 2;",
        "constexpr uint32_t kSlots = 1;",
        "sequences",
        quick=True,
    ),
    Mutant(
        "the slot never changes", _P + "wait.h", "slot = epoch % kSlots;", "slot = 0;", "sequences"
    ),
    Mutant(
        "the last word of a vector is not looked at",
        _P + "pack.h",
        " || v.w[2] == kSentinel || v.w[3] == kSentinel;",
        " || v.w[2] == kSentinel;",
        "sequences",
        quick=True,
    ),
    Mutant(
        "the first word of a vector is not looked at",
        _P + "pack.h",
        "return v.w[0] == kSentinel || ",
        "return ",
        "sequences",
    ),
    Mutant(
        "a payload's last word may be the sentinel",
        _P + "pack.h",
        "i < 4; ++i) v.w[i] = v.w[i] == kSentinel",
        "i < 3; ++i) v.w[i] = v.w[i] == kSentinel",
        "values",
    ),
    Mutant(
        "a sum starts from +0",
        _P + "pack.h",
        "float sum = to_float(",
        "float sum = 0.0f + to_float(",
        "values",
        quick=True,
    ),
    Mutant(
        "the order of summation is another",
        _P + "pack.h",
        "sum += to_float(element<T>(by_rank[rank], i));",
        "sum += to_float(element<T>(by_rank[kWorld - rank], i));",
        "order",
    ),
    Mutant(
        "a tail is stored one element too far",
        _P + "pack.h",
        "for (uint32_t i = 0; i < count; ++i) {",
        "for (uint32_t i = 0; i <= count; ++i) {",
        "sequences",
    ),
    Mutant(
        "a signature's epoch is not masked",
        _P + "call.h",
        "Words{{epoch & kEpochMask, ",
        "Words{{epoch, ",
        "wrap",
    ),
    Mutant(
        "a signature has no epoch",
        _P + "call.h",
        "Words{{epoch & kEpochMask, ",
        "Words{{epoch & 0, ",
        "epochs_differ",
        quick=True,
    ),
    Mutant(
        "a signature has no size",
        _P + "call.h",
        "kEpochMask, call.vectors, ",
        "kEpochMask, 0, ",
        "mismatch",
    ),
    Mutant("a signature has no tag", _P + "call.h", ", call.tag}}", ", 0}}", "mismatch"),
    Mutant(
        "a shape has no tail", _P + "call.h", "s.tail_bytes << 8 | ", "", "mismatch", quick=True
    ),
    Mutant(
        "a shape has no grid",
        _P + "call.h",
        "(s.grid & 0xffu) << 12 | ",
        "",
        "mismatch",
    ),
    Mutant(
        "a stop word has no generation",
        _P + "slab.h",
        "return word >> 8 == (generation & 0xffffffu) ? ",
        "return generation != 0 ? ",
        "stale_stop",
        quick=True,
    ),
    Mutant(
        "later calls do not see the stop word",
        _P + "wait.h",
        "stop = stop_of(words.w[0], generation);",
        "stop = Stop::kNone;",
        "drained",
    ),
    Mutant(
        "a wait does not see its peers' stop word",
        _P + "wait.h",
        "Stop why = stop_of(ld_relaxed_sys(&control->stop), generation);",
        "Stop why = Stop::kNone;",
        "told_by_a_peer",
        quick=True,
    ),
    Mutant(
        "a wait does not see the host's stop word",
        _P + "wait.h",
        "why = stop_of(host.stop, generation);",
        "why = Stop::kNone;",
        "host_stop",
    ),
    Mutant(
        "a wait does not see that a peer is absent",
        _P + "wait.h",
        "(host.absent >> from & 1u) != 0",
        "false",
        "absent",
    ),
    Mutant(
        "a wait judges what it read before its look",
        _P + "wait.h",
        "ask < 2 && !here",
        "ask < 1 && !here",
        "asked_again",
    ),
    Mutant(
        "anybody's absence ends a wait",
        _P + "wait.h",
        "(host.absent >> from & 1u) != 0",
        "host.absent != 0",
        "another_is_absent",
    ),
    Mutant(
        "a wait does not see its deadline",
        _P + "wait.h",
        "waited_ns > in_nanoseconds(host.deadline_ms)",
        "false",
        "deadline",
    ),
    Mutant(
        "a failure is told to nobody",
        _P + "wait.h",
        "if (stop == Stop::kPeer) return;",
        "return;",
        "deadline",
        quick=True,
    ),
    Mutant(
        "a stop word is of another generation",
        _P + "wait.h",
        "stop_word(generation, seen_there));",
        "stop_word(generation + 1, seen_there));",
        "deadline",
    ),
    Mutant(
        "a later failure takes the first one's record",
        _P + "wait.h",
        "if (atom_exch_relaxed_gpu(&control->reporter, generation) == generation) return;",
        "atom_exch_relaxed_gpu(&control->reporter, generation);",
        "deadline",
    ),
    Mutant(
        "the record names the wrong peer",
        _P + "mailboxes.h",
        "missing = rank_of(peer, turn.call.rank);\n",
        "missing = rank_of(0, turn.call.rank);\n",
        "no_result_of_half_a_sum",
    ),
    Mutant(
        "a notice is never withdrawn",
        _P + "wait.h",
        "if (__builtin_expect(noticed, 0)) st_relaxed_sys(&control->noticer, 0);",
        "",
        "notice",
    ),
    Mutant(
        "a wait is noticed at once",
        _P + "wait.h",
        "now - since > in_nanoseconds(host.notice_ms)",
        "true",
        "notice",
    ),
    Mutant(
        "a signature is not re-armed",
        _P + "signature.h",
        "st_relaxed_sys(mailbox, armed());",
        "",
        "sequences",
        quick=True,
    ),
    Mutant(
        "the last word of a signature is not compared",
        _P + "signature.h",
        "i < 4; ++i) same = ",
        "i < 3; ++i) same = ",
        "mismatch",
    ),
    Mutant(
        "a difference is not reported",
        _P + "signature.h",
        "if (same) return;",
        "return;",
        "mismatch",
    ),
    Mutant(
        "a refusal is taken for a mismatch",
        _P + "signature.h",
        "(theirs.w[2] & kRefusedShape) != 0",
        "(theirs.w[2] & 0) != 0",
        "refusal",
    ),
    Mutant(
        "a refuser's replays run",
        _P + "signature.h",
        "st_relaxed_sys(&turn.control->stop, stop_word(turn.generation, Stop::kPeer));",
        "",
        "refusal_then_replay",
    ),
    Mutant(
        "two calls at once are not seen",
        _P + "signature.h",
        "atom_exch_relaxed_gpu(&turn.state->owner, 1) != 0",
        "atom_exch_relaxed_gpu(&turn.state->owner, 1) > 1",
        "overlap",
    ),
    Mutant(
        "the owner word is not let go",
        _P + "signature.h",
        "st_relaxed_sys(&turn.state->owner, 0);",
        "",
        "sequences",
    ),
    Mutant(
        "the epoch stands still",
        _P + "signature.h",
        "turn.epoch + turn.call.laps",
        "turn.epoch",
        "wrap",
    ),
    Mutant(
        "a drained call is not told",
        _P + "signature.h",
        "turn.fail(turn.stop, rank, Phase::kNone, 0);",
        "",
        "drained",
    ),
    Mutant(
        "a signature is sent after an abort",
        _P + "signature.h",
        "if (!has_peer(turn.call, lane) || !turn.ok()) return;",
        "if (!has_peer(turn.call, lane)) return;",
        "drained",
    ),
    Mutant(
        "one-shot publishes after an abort",
        _P + "one_shot.h",
        "if (!turn.ok()) return;  // after an abort nothing is published\n",
        "",
        "drained",
        quick=True,
    ),
    Mutant(
        "one-shot does not re-arm",
        _P + "one_shot.h",
        "st_relaxed_sys(boxes.from(peer, i), armed());",
        "(void)peer;",
        "sequences",
        quick=True,
    ),
    Mutant(
        "one-shot pushes payloads as they are",
        _P + "one_shot.h",
        "    v = canonical(v);\n",
        "",
        "values",
    ),
    Mutant(
        "one-shot uses one slot",
        _P + "one_shot.h",
        "boxes = boxes.moved(turn.slot * boxes.shot);",
        "",
        "sequences",
    ),
    Mutant(
        "one-shot leaves out the last step",
        _P + "one_shot.h",
        "share.has(step, block.lanes); ++step",
        "share.has(step + 1, block.lanes); ++step",
        "sequences",
    ),
    Mutant(
        "two-shot publishes after an abort",
        _P + "two_shot.h",
        "if (!turn.ok() || !exists((rank + hop) % kWorld, p)) return;",
        "if (!exists((rank + hop) % kWorld, p)) return;",
        "drained",
    ),
    Mutant(
        "two-shot sends results of half a sum",
        _P + "two_shot.h",
        "if (!collect(turn, Phase::kShards, others, box)) return poison();",
        "collect(turn, Phase::kShards, others, box);",
        "no_result_of_half_a_sum",
        quick=True,
    ),
    Mutant(
        "two-shot does not re-arm shards",
        _P + "two_shot.h",
        "st_relaxed_sys(shard_from(peer, p), armed());",
        "",
        "sequences",
    ),
    Mutant(
        "two-shot does not re-arm results",
        _P + "two_shot.h",
        "st_relaxed_sys(box(peer), armed());",
        "",
        "sequences",
    ),
    Mutant(
        "two-shot rounds its parts down",
        _P + "two_shot.h",
        "(vectors + kWorld - 1) / kWorld",
        "vectors / kWorld",
        "sequences",
    ),
    Mutant(
        "a lap's signature has the epoch of the first",
        _P + "signature.h",
        "place(turn, lap), signature_of(turn.call, turn.epoch + lap)",
        "place(turn, lap), signature_of(turn.call, turn.epoch)",
        "laps",
    ),
    Mutant(
        "a lap's signature is not sent",
        _P + "two_shot.h",
        "signatures.send_lap(block, turn, gathered.lap);",
        "{}",
        "laps",
    ),
    Mutant(
        "a lap's signature is not read",
        _P + "two_shot.h",
        "if (step == 0 || ends) signatures",
        "if (step == 0) signatures",
        "laps",
    ),
    Mutant(
        "a lap's signature is looked for in the lap before",
        _P + "two_shot.h",
        "signatures.check_lap(block, turn, lap);",
        "signatures.check_lap(block, turn, lap - (ends ? 1 : 0));",
        "laps",
    ),
    Mutant(
        "a call of laps is one to the epoch",
        _P + "signature.h",
        "turn.epoch + turn.call.laps",
        "turn.epoch + 1",
        "laps",
    ),
    Mutant(
        "a lap goes on where the one before ended",
        _P + "two_shot.h",
        "done = over ? 0 : done + lanes;",
        "done = done + lanes;",
        "laps",
    ),
    Mutant(
        "every lap is of the same vectors",
        _P + "two_shot.h",
        "const uint32_t at = step.lap * call.stride + i;",
        "const uint32_t at = i;",
        "laps",
    ),
    Mutant(
        "a block has a step too few",
        _P + "one_shot.h",
        "return step * lanes < count;",
        "return (step + 1) * lanes < count;",
        "sequences",
    ),
    Mutant(
        "the pieces of two blocks overlap",
        _P + "slab.h",
        "i / kPiece * (kPiece * (kMaxBlocks - 1))",
        "i / kPiece * (kPiece * 0)",
        "apart",
    ),
    Mutant(
        "a peer's place in the sum is its neighbour's",
        _P + "mailboxes.h",
        "r < rank ? if_below : if_above",
        "r < rank ? if_above : if_below",
        "sequences",
    ),
    Mutant(
        "corruption of an edge is not seen",
        _P + "edges.h",
        "} else if (seen.w[i] != last.w[i]) {",
        "} else if (seen.w[i] == last.w[i] + 1) {",
        "ping_pong_of_garbage",
    ),
    Mutant(
        "a lost write is not read back",
        _P + "edges.h",
        "state == EdgeState::kSilent && stands(round) ? 1 : 0",
        "state == EdgeState::kSound && stands(round) ? 1 : 0",
        "ping_pong_into_a_mirror",
    ),
    Mutant(
        "a silent edge has a round too many",
        _P + "edges.h",
        "if (state != EdgeState::kSound) --round;",
        "",
        "ping_pong_into_a_mirror",
    ),
    Mutant(
        "chunks are written over each other",
        "csrc/rank.cpp",
        "call.out = reinterpret_cast<void*>(out + offset);",
        "call.out = reinterpret_cast<void*>(out);",
        "chunks",
    ),
]

_GPU_MEMORY = [
    Mutant(
        "stores of data at GPU scope",
        _P + "memory.h",
        "st.relaxed.sys.global.v4.u32",
        "st.relaxed.gpu.global.v4.u32",
        _LITMUS + "test_data_that_arrived_do_not_go_away",
    ),
    Mutant(
        "polls of a word at GPU scope",
        _P + "memory.h",
        "ld.relaxed.sys.global.u32",
        "ld.relaxed.gpu.global.u32",
        _LITMUS + "test_every_function_of_the_header_is_understood",
    ),
    Mutant(
        "the state word is not released",
        _P + "memory.h",
        "st.release.sys.global.u32",
        "st.relaxed.sys.global.u32",
        _LITMUS + "test_who_hears_of_a_failure_reads_its_whole_record",
        quick=True,
    ),
    Mutant(
        "the state word is released to the GPU alone",
        _P + "memory.h",
        "st.release.sys.global.u32",
        "st.release.gpu.global.u32",
        _LITMUS + "test_who_hears_of_a_failure_reads_its_whole_record",
    ),
    Mutant(
        "the host's words are not acquired",
        _P + "memory.h",
        '  asm volatile("fence.acq_rel.sys;" ::: "memory");\n',
        "",
        _LITMUS + "test_what_an_absent_rank_sent_is_here",
        quick=True,
    ),
    Mutant(
        "the host's words are acquired from the GPU alone",
        _P + "memory.h",
        '  asm volatile("fence.acq_rel.sys;"',
        '  asm volatile("fence.acq_rel.gpu;"',
        _LITMUS + "test_what_an_absent_rank_sent_is_here",
    ),
    Mutant(
        "a lap's signature leaves without a fence",
        _P + "two_shot.h",
        "signatures.send_lap(block, turn, ",
        "signatures.send(block, turn, ",
        _LITMUS + "test_rearming_is_before_the_push_of_a_later_lap",
        quick=True,
    ),
    Mutant(
        "a lap's signature is read without a fence",
        _P + "two_shot.h",
        "signatures.check_lap(block, turn, ",
        "signatures.check(block, turn, ",
        _LITMUS + "test_rearming_is_before_the_push_of_a_later_lap",
    ),
    Mutant(
        "the fences of laps are of the GPU alone",
        _P + "memory.h",
        'fence_sys() { asm volatile("fence.acq_rel.sys;"',
        'fence_sys() { asm volatile("fence.acq_rel.gpu;"',
        _LITMUS + "test_rearming_is_before_the_push_of_a_later_lap",
    ),
    Mutant(
        "an exchange within a block alone",
        _P + "memory.h",
        "atom.relaxed.gpu.global",
        "atom.relaxed.cta.global",
        _LITMUS + "test_one_failure_of_a_generation_writes_the_record",
    ),
    Mutant(
        "a grid does not wait for the grid before",
        _P + "memory.h",
        '  if (early != 0) asm volatile("griddepcontrol.wait;" ::: "memory");\n',
        "",
        _LITMUS + "test_rearming_is_before_the_next_push",
    ),
]

_PYTHON = [
    Mutant(
        "a stale nonce is accepted",
        "pyallreduce/wire.py",
        'for field, expected in (("nonce", nonce), ("rank", rank), ("world", world)):',
        'for field, expected in (("rank", rank), ("world", world)):',
        _WIRE + "test_a_refusal_names_the_field",
        quick=True,
    ),
    Mutant(
        "a frame in another rank's place is accepted",
        "pyallreduce/wire.py",
        '("nonce", nonce), ("rank", rank), ("world", world)',
        '("nonce", nonce), ("world", world)',
        _WIRE + "test_a_refusal_names_the_field",
    ),
    Mutant(
        "a wrong checksum is accepted",
        "pyallreduce/wire.py",
        "if frame[_END:] != _checksum(frame[:_END]):",
        "if len(frame[_END:]) != _CHECKSUM_BYTES:",
        _WIRE + "test_a_wrong_checksum_is_named",
    ),
    Mutant(
        "bytes behind the body are accepted",
        "pyallreduce/wire.py",
        " or any(frame[_BODY + header.length : _END])",
        "",
        _WIRE + "test_a_refusal_names_the_field",
    ),
    Mutant(
        "another kind of frame is accepted",
        "pyallreduce/wire.py",
        "if header.kind is not _KINDS[record]:",
        "if header.kind not in _KINDS.values():",
        _WIRE + "test_what_is_sent_arrives",
    ),
    Mutant(
        "a place beyond the choices is read",
        "pyallreduce/wire_fields.py",
        "if raw >= len(self.choices):",
        "if raw > len(self.choices):",
        "tests/fuzz/test_frames.py::test_any_choice_is_read_or_refused",
    ),
    Mutant(
        "a number above its range is accepted",
        "pyallreduce/wire_fields.py",
        "if not self.low <= raw <= self.high:",
        "if not self.low <= raw:",
        _WIRE + "test_a_sender_refuses_what_a_peer_would",
    ),
    Mutant(
        "control characters are accepted",
        "pyallreduce/wire_fields.py",
        "if any(map(_is_control, text)):",
        "if all(map(_is_control, text)) and text:",
        _WIRE + "test_an_identity_is_never_altered",
    ),
    Mutant(
        "a verdict of another stage is accepted",
        "pyallreduce/verdicts.py",
        "if verdict.stage != stage:",
        "if verdict.stage < 0:",
        _VERDICTS + "test_what_is_no_verdict_of_this_stage_is_a_veto",
        quick=True,
    ),
    Mutant(
        "a verdict of another job is accepted",
        "pyallreduce/verdicts.py",
        "wire.decode(frame, wire.Verdict, nonce=nonce, rank=rank,",
        "wire.decode(frame, wire.Verdict, rank=rank,",
        _VERDICTS + "test_what_is_no_verdict_of_this_stage_is_a_veto",
    ),
    Mutant(
        "the last veto is told, not the gravest",
        "pyallreduce/verdicts.py",
        "rank, reason = min(vetoes,",
        "rank, reason = max(vetoes,",
        _VERDICTS + "test_the_gravest_veto_is_everybodys",
    ),
    Mutant(
        "a decision depends on the order of the facts",
        "pyallreduce/selector.py",
        "asked = {f.backend for f in group}",
        "asked = {group[0].backend}",
        _SELECTOR + "test_a_demand_by_one_rank_is_a_demand_to_all",
    ),
    Mutant(
        "namespaces may differ",
        "pyallreduce/selector.py",
        "    _pid_namespace,\n",
        "",
        _SELECTOR + "test_earlier_checks_win",
    ),
    Mutant(
        "peers need no access",
        "pyallreduce/selector.py",
        "    _peer_access,\n",
        "",
        _SELECTOR + "test_earlier_checks_win",
    ),
    Mutant(
        "a wrong sum at start-up is accepted",
        "pyallreduce/validate.py",
        "wrong = int((case.out != case.expected).sum())",
        "wrong = int((case.out != case.out).sum())",
        _VALIDATE + "test_a_wrong_sum_is_a_veto",
        quick=True,
    ),
    Mutant(
        "a broken edge is accepted",
        "pyallreduce/validate.py",
        "broken = [edge for edge in found if edge.state != _SOUND]",
        "broken = [edge for edge in found if edge.state > _SILENT + 1]",
        _VALIDATE + "test_an_edge_is_named_for_what_is_wrong_with_it",
    ),
    Mutant(
        "a private mirror is taken for a lost write",
        "pyallreduce/validate.py",
        "if not edge.read_back:",
        "if edge.read_back or not edge.read_back:",
        _VALIDATE + "test_an_edge_is_named_for_what_is_wrong_with_it",
    ),
    Mutant(
        "a slab with a stale nonce is accepted",
        "pyallreduce/slab.py",
        "if seen != expected or offer.nonce != nonce:",
        "if len(seen) != len(expected):",
        "tests/unit/test_slab.py::test_a_slab_of_another_job_is_refused",
        quick=True,
    ),
    Mutant(
        "a cause that is not written yet is not waited for",
        "pyallreduce/native.py",
        "if death[1] or time.monotonic() > deadline:",
        "if death[1] or time.monotonic() < deadline:",
        "tests/unit/test_native.py::test_a_cause_that_comes_late_is_told",
    ),
    Mutant(
        "a slab is not armed",
        "pyallreduce/slab.py",
        "_SENTINEL_BYTE if armed else 0",
        "0 if armed else 0",
        "tests/unit/test_slab.py::test_a_slab_is_armed_before_it_is_offered",
    ),
]

MUTANTS = (*_PROTOCOL, *_GPU_MEMORY, *_PYTHON)
