# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Mutants of slots, sums, mailboxes and laps, which the host target shows.

Left out, because nobody could tell: on the host a block is one thread, which checks the signatures
before it sums, so that what only keeps its lanes together (`block.all`, `join`, the poison of an
output whose sum arrived) changes nothing there. Two-shot's vectors behind the end are neither read
nor stored.
"""

from __future__ import annotations

from tests.mutants.mutant import Mutant

__all__ = ["ALGORITHMS"]

_P = "csrc/protocol/"

ALGORITHMS = [
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
        "float sum = bits_float(by_rank[0]);",
        "float sum = 0.0f + bits_float(by_rank[0]);",
        "values",
        quick=True,
    ),
    Mutant(
        "the second half of a word is not summed",
        _P + "pack.h",
        "      sum.high += next.high;\n",
        "",
        "order",
    ),
    Mutant(
        "the order of summation is another",
        _P + "pack.h",
        "sum += bits_float(by_rank[rank]);",
        "sum += bits_float(by_rank[kWorld - rank]);",
        "order",
    ),
    Mutant(
        "a tail is stored one element too far",
        _P + "pack.h",
        "for (uint32_t i = 0; i < count; ++i) {",
        "for (uint32_t i = 0; i < count + (count > 0 ? 1 : 0); ++i) {",
        "sequences",
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
        "what is taken out of a mailbox is not re-armed",
        _P + "mailboxes.h",
        "st_relaxed_sys(mailbox(peer), armed());",
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
        "one-shot does not advance the epoch",
        _P + "one_shot.h",
        "  advance_by_owner(block, turn);\n",
        "",
        "sequences",
    ),
    Mutant(
        "two-shot does not advance the epoch",
        _P + "two_shot.h",
        "      if (step == 0) advance_by_owner(block_, turn_);\n",
        "",
        "laps",
    ),
    Mutant(
        "the owner word is the epoch's",
        _P + "wait.h",
        "return &Slab::owner_behind(epoch_word)->value;",
        "return &epoch_word->value;",
        "sequences",
    ),
    Mutant(
        "a rank takes itself for another's peer",
        "csrc/rank.cpp",
        "call.rank - (call.rank + hop < world() ? 0 : 1)",
        "call.rank - (call.rank == 0 ? 0 : 1)",
        "sequences",
    ),
    Mutant(
        "two-shot publishes after an abort",
        _P + "two_shot.h",
        "if (!turn_.ok() || !exists((rank_ + hop) % kWorld, p)) return;",
        "if (!exists((rank_ + hop) % kWorld, p)) return;",
        "drained",
    ),
    Mutant(
        "two-shot sends results of half a sum",
        _P + "two_shot.h",
        "if (!collect(turn_, Phase::kShards, others, box)) return poison();",
        "collect(turn_, Phase::kShards, others, box);",
        "no_result_of_half_a_sum",
        quick=True,
    ),
    Mutant(
        "two-shot does not re-arm shards",
        _P + "mailboxes.h",
        "st_relaxed_sys(mailbox(peer), armed());",
        "if (phase != Phase::kShards) st_relaxed_sys(mailbox(peer), armed());",
        "sequences",
    ),
    Mutant(
        "two-shot does not re-arm results",
        _P + "mailboxes.h",
        "st_relaxed_sys(mailbox(peer), armed());",
        "if (phase != Phase::kResults) st_relaxed_sys(mailbox(peer), armed());",
        "sequences",
    ),
    Mutant(
        "two-shot rounds its parts down",
        _P + "two_shot.h",
        "(vectors_ + kWorld - 1) / kWorld",
        "vectors_ / kWorld",
        "sequences",
    ),
    Mutant(
        "a lap's signature is not sent",
        _P + "two_shot.h",
        "signatures_.send_lap(block_, turn_, gathered_.lap);",
        "{}",
        "laps",
    ),
    Mutant(
        "a lap's signature is not read",
        _P + "two_shot.h",
        "if (step == 0 || ends) signatures_",
        "if (step == 0) signatures_",
        "laps",
    ),
    Mutant(
        "a lap's signature is looked for in the lap before",
        _P + "two_shot.h",
        "signatures_.check(block_, turn_, lap);",
        "signatures_.check(block_, turn_, lap - (ends ? 1 : 0));",
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
        "const uint32_t at = step.lap * call_.stride + i;",
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
        "rank 0 has no place in a sum",
        _P + "mailboxes.h",
        "const uint32_t place = rank == 0 ? 1 : rank;",
        "const uint32_t place = rank;",
        "sequences",
    ),
    Mutant(
        "a rank takes its neighbour's place in a sum",
        _P + "mailboxes.h",
        " : r < place ? if_below : if_above;",
        " : r < place ? (place == 3 ? others[3 - r] : if_below) : if_above;",
        "order",
    ),
    Mutant(
        "chunks are written over each other",
        "csrc/rank.cpp",
        "call.out = reinterpret_cast<void*>(out + offset);",
        "call.out = reinterpret_cast<void*>(out);",
        "chunks",
    ),
]
