# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Mutants of what a signature says and of the turn of a call, which the host target shows."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

__all__ = ["SIGNATURES"]

_P = "csrc/protocol/"

SIGNATURES = [
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
        "kEpochMask, vectors, ",
        "kEpochMask, 0, ",
        "mismatch",
    ),
    Mutant("a signature has no tag", _P + "call.h", ", tag}}", ", 0}}", "mismatch"),
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
        "a signature is not re-armed",
        _P + "signature.h",
        "st_relaxed_sys(mailbox, armed());",
        "",
        "sequences",
        quick=True,
    ),
    Mutant(
        "the last word of a signature is not compared",
        _P + "call.h",
        " | (a.w[3] ^ b.w[3])) == 0",
        ") == 0",
        "mismatch",
    ),
    Mutant(
        "a difference is not reported",
        _P + "signature.h",
        "if (same(theirs, ours_[hop].at(turn.epoch + lap))) return;",
        "return;",
        "mismatch",
    ),
    Mutant(
        "a mismatch is laid to a rank by its distance",
        _P + "signature.h",
        "turn.call.rank_at(hop), Phase::kSignature",
        "hop, Phase::kSignature",
        "mismatch",
    ),
    Mutant(
        "the ranks are not a round",
        _P + "call.h",
        "rank + hop - (rank + hop < layout.world ? 0 : layout.world)",
        "rank + hop",
        "mismatch",
    ),
    Mutant(
        "a rank signs in another's place",
        "csrc/rank.cpp",
        "(layout.world - hop) % layout.world",
        "hop",
        "no_result_of_half_a_sum",
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
        "atom_exch_relaxed_gpu(turn.owner_word(), 1) != 0",
        "atom_exch_relaxed_gpu(turn.owner_word(), 1) > 1",
        "overlap",
    ),
    Mutant(
        "the owner word is not let go",
        _P + "signature.h",
        "st_relaxed_sys(turn.owner_word(), 0);",
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
        "if (!has_peer(hop) || !turn.ok()) return;",
        "if (!has_peer(hop)) return;",
        "drained",
    ),
    Mutant(
        "a lap's signature has the epoch of the first",
        _P + "signature.h",
        "place(turn, lap), ours_[hop].at(turn.epoch + lap)",
        "place(turn, lap), ours_[hop].at(turn.epoch)",
        "laps",
    ),
    Mutant(
        "a call of laps is one to the epoch",
        _P + "signature.h",
        "turn.epoch + turn.call.laps",
        "turn.epoch + 1",
        "laps",
    ),
]
