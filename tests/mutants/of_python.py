# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Mutants of frames, verdicts, selection, validation and slabs."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

__all__ = ["PYTHON"]

_WIRE = "tests/unit/test_wire.py::"
_SELECTOR = "tests/unit/test_selector.py::"
_VERDICTS = "tests/unit/test_verdicts.py::"
_VALIDATE = "tests/unit/test_validate.py::"

PYTHON = [
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
        "pyallreduce/records.py",
        "Stop.REFUSED in stops or time.monotonic() > deadline:",
        "Stop.REFUSED in stops or time.monotonic() < deadline:",
        "tests/unit/test_native.py::test_a_cause_that_comes_late_is_told",
    ),
    Mutant(
        "an old refusal makes a rank start anew by itself",
        "pyallreduce/native.py",
        "if death[1] or tell_of_generation(records, self._generation):",
        "if death[1] or records:",
        "tests/unit/test_native.py::test_an_old_refusal_that_is_told_late_starts_nothing",
    ),
    Mutant(
        "the next generation's records are taken for those of a failure",
        "pyallreduce/records.py",
        "if any(was.state not in (0, is_.state) for",
        "if all(was.state not in (0, is_.state) for",
        "tests/unit/test_native.py::"
        "test_an_abort_is_told_though_another_thread_has_recovered_since",
    ),
    Mutant(
        "a rank that gives up a new generation still seems to wait for it",
        "pyallreduce/rendezvous.py",
        "slabs.want(0)  # who comes later",
        "slabs.want(generation)  # who comes later",
        "tests/unit/test_rendezvous.py::test_a_rank_that_does_not_come_is_named_at_the_deadline",
    ),
    Mutant(
        "a rank gives up in the instant in which the last one comes",
        "pyallreduce/rendezvous.py",
        "if _missing(slabs, generation) - {rank}:",
        "if _missing(slabs, generation):",
        "tests/unit/test_rendezvous.py::"
        "test_nobody_gives_up_when_the_last_one_comes_in_that_instant",
    ),
    Mutant(
        "a rank that has closed is waited for",
        "pyallreduce/rendezvous.py",
        "records[rank].absent >> peer & 1",
        "records[peer].absent >> peer & 1",
        "tests/unit/test_rendezvous.py::test_a_rank_that_has_closed_is_named_at_once",
    ),
    Mutant(
        "a rank that is missed is not the one that is named",
        "pyallreduce/exchange.py",
        "transfers.lose(peer, error)",
        "transfers.lose((self.rank + 1) % self.world, error)",
        "tests/ranks/test_communicator.py::test_a_rank_that_is_away_is_named_in_time",
    ),
    Mutant(
        "a slab is not armed",
        "pyallreduce/slab.py",
        "_SENTINEL_BYTE if armed else 0",
        "0 if armed else 0",
        "tests/unit/test_slab.py::test_a_slab_is_armed_before_it_is_offered",
    ),
]
