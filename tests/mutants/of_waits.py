# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Mutants of waits, of their reports, and of start-up's ping-pong, which the host target shows."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

__all__ = ["WAITS"]

_P = "csrc/protocol/"

WAITS = [
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
        "ask < 0 && !here",
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
        "from = rank_of(peer, turn.call.rank);\n",
        "from = rank_of(0, turn.call.rank);\n",
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
]
