# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The fault matrix: which fault strikes which rank at which stage, and what must come of it.

Every case ends, on every rank that survives, in a right result, in a typed error, or on the
fallback with right results. `judge` holds the outcomes against that, and against what this kind of
fault promises beyond it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["CALLS", "INSIDE_S", "Case", "judge", "lethal", "matrix", "of_three", "survivable"]

CALLS = 8  # of one case
FIRST, STEADY = 0, 5  # the call that a fault of these stages strikes
# The steps of the start-up exchange.
STARTUP = ("facts", "tables", "offers", "open", "edges", "calls")
PROCESS = ("kill", "stop 3 s", "stop", "exception")
CALL = ("skip", "size", "dtype", "algorithm", "tag", "two at once")
EDGE = ("dropped", "mirrored", "corrupted", "torn", "delayed")

# What start-up says of an edge that is broken from the beginning.
EDGE_CODES = {
    "dropped": "P2P_WRITE_LOST",
    "mirrored": "P2P_PRIVATE_MIRROR",
    "corrupted": "P2P_CORRUPT",
}
TYPED = {"AllReduceAborted", "BackendUnavailable", "CallMismatch", "ExchangeTimeout"}
SLACK_S = 0.5  # over the deadline, or over the moment of a death
CAPTURE_S = 1.0  # of a graph, where it is part of the call
# A fault inside of a call strikes when its victim has been in it so long; the others come to that
# call twice as late.
INSIDE_S = 0.3
NOTICE_MS = 400
USABLE_S = 2.0


@dataclass(frozen=True)
class Case:
    """One fault. `deadline_ms` bounds each wait; it is short where the wait is to end in vain."""

    fault: str
    stage: str
    victim: int
    ranks: int = 2

    @property
    def name(self) -> str:
        return f"{self.fault}, {self.stage}, rank {self.victim} of {self.ranks}"

    @property
    def lethal(self) -> bool:
        """Whether the group is of no more use afterwards."""
        return self.fault in ("kill", "stop")

    @property
    def deadline_ms(self) -> int:
        if self.fault == "stop 3 s":
            return 6_000
        return 300 if self.stage == "first call" else 1_500

    @property
    def longest_wait_s(self) -> float:
        """Ranks may come to the first call, or to the replay of a graph that was just captured, ten
        times as late: `Config.patient_ms`."""
        patient = self.stage in ("first call", "replay")
        return self.deadline_ms * (10 if patient else 1) / 1e3

    @property
    def latest_s(self) -> float:
        """What the struck call may take at most, beside the victim's silence itself."""
        apart = {"inside": 2 * INSIDE_S, "replay": CAPTURE_S}
        return apart.get(self.stage, 0.0) + SLACK_S

    @property
    def strikes(self) -> int:
        """The call that the fault strikes; out of reach where it strikes another stage."""
        steady = dict.fromkeys(("steady", "inside", "replay"), STEADY)
        return {"first call": FIRST, **steady}.get(self.stage, -1)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "deadline_ms": self.deadline_ms, "strikes": self.strikes}


def matrix(ranks: int = 2) -> Iterator[Case]:
    """All cases, each with the first and the last rank as its victim."""
    stages: Mapping[str, Sequence[str]] = {
        **dict.fromkeys(PROCESS, (*STARTUP, "first call", "steady", "teardown")),
        **dict.fromkeys(CALL, ("first call", "steady")),
        **dict.fromkeys(EDGE, ("startup", "steady")),
    }
    for fault, places in stages.items():
        inside = ("inside",) if fault in ("kill", "stop 3 s", "stop") else ()
        for stage in (*places, *inside):
            for victim in (0, ranks - 1):
                yield Case(fault, stage, victim, ranks)


def lethal(ranks: int = 2) -> list[Case]:
    return [case for case in matrix(ranks) if case.lethal]


def survivable(ranks: int = 2) -> list[Case]:
    return [case for case in matrix(ranks) if not case.lethal]


def of_three() -> list[Case]:
    """Cases that leave a group of three usable; the one in the middle is the victim."""
    stages: Mapping[str, Sequence[str]] = {
        "exception": ("edges", "calls", "steady"),
        **dict.fromkeys(CALL, ("steady",)),
        **dict.fromkeys(EDGE, ("startup", "steady")),
    }
    return [Case(fault, stage, 1, 3) for fault, places in stages.items() for stage in places]


def judge(case: Case, outcomes: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the outcomes of a case, by rank; empty if all is as promised."""
    dead = {case.victim} if case.lethal else set()
    complaints = []
    for rank in range(case.ranks):
        if rank in dead:
            continue
        seen = outcomes.get(rank)
        if seen is None:
            complaints.append(f"rank {rank} said nothing")
            continue
        complaints += [
            f"rank {rank}: {what}: {dict(seen)}" for what in _faults_of(case, rank, seen)
        ]
    return complaints


def _faults_of(case: Case, rank: int, seen: Mapping[str, Any]) -> Iterator[str]:
    if seen["wrong"]:
        yield "a wrong value was accepted"
    if seen["end"] != "right" and seen["end"] not in TYPED:
        planted = case.fault == "exception" and rank == case.victim and seen["end"] == "Planted"
        if not planted:
            yield "neither a right result nor a typed error"
    if not case.lethal and not seen.get("usable"):
        yield "the process should be of use to others afterwards"
    elif not case.lethal and seen["usable_s"] > USABLE_S:
        yield "the process was of use to others late"
    yield from _PROMISES[case.fault](case, rank, seen)


def _right(seen: Mapping[str, Any]) -> Iterator[str]:
    if seen["end"] != "right":
        yield "should have ended in the right result"


def _kill(case: Case, _rank: int, seen: Mapping[str, Any]) -> Iterator[str]:
    if case.stage == "teardown":
        yield from _right(seen)
    elif case.strikes >= 0:
        if seen["end"] != "AllReduceAborted" or seen["peer"] != case.victim:
            yield "the dead rank should have been named"
        if "SIGKILL" not in seen["text"] + seen["log"]:  # the exception waits for it 50 ms at most
            yield "how it died should have been told"
        if seen["took"] > case.latest_s:
            yield "the end came late"
    elif (seen["end"], seen["peer"]) != ("ExchangeTimeout", case.victim):
        yield "the dead rank should have been named"


def _stop_3s(_case: Case, _rank: int, seen: Mapping[str, Any]) -> Iterator[str]:
    yield from _right(seen)
    if seen["backend"] != "native":
        yield "a stop shorter than the deadline is no reason for the fallback"


def _stop(case: Case, rank: int, seen: Mapping[str, Any]) -> Iterator[str]:
    if case.stage == "teardown":
        yield from _right(seen)
    elif case.strikes >= 0:
        if seen["end"] != "AllReduceAborted" or seen["peer"] != case.victim:
            yield "the silent rank should have been named"
        if seen["took"] > case.longest_wait_s + case.latest_s:
            yield "the end came late"
        noticed = re.search(
            rf"rank {rank} has waited ([0-9.]+) s for rank {case.victim} in call [0-9]+ \(\w+, ",
            seen["log"],
        )
        if not noticed:
            yield "the wait should have been noticed in the log, with both ranks, call and phase"
        elif float(noticed[1]) > NOTICE_MS / 1e3 + 0.5:
            yield "the wait was noticed late"
    elif (seen["end"], seen["peer"]) != ("ExchangeTimeout", case.victim):
        yield "the silent rank should have been named"


def _exception(case: Case, rank: int, seen: Mapping[str, Any]) -> Iterator[str]:
    if case.stage == "tables":
        yield from _right(seen)
        if seen["backend"] != "native":
            yield "a tuned table that can't be had is no reason for the fallback"
    elif case.stage in STARTUP:
        yield from _right(seen)
        if seen["backend"] != "nccl" or seen["code"] == "OK":
            yield "should have gone on with the fallback, and said why"
    elif case.stage == "teardown" or rank == case.victim:
        return
    elif seen["end"] != "AllReduceAborted" or "has closed its communicator" not in seen["text"]:
        yield "should have been told that the peer has closed"
    elif seen["took"] > case.latest_s:
        yield "the end came late"


def _mismatch(_case: Case, _rank: int, seen: Mapping[str, Any]) -> Iterator[str]:
    if seen["end"] != "CallMismatch":
        yield "should have been told that the calls differ"
    elif len(set(re.findall("Rank [0-9]+: call", seen["text"]))) != 2:
        yield "both calls should have been printed"


def _two_at_once(case: Case, rank: int, seen: Mapping[str, Any]) -> Iterator[str]:
    if seen["end"] != "AllReduceAborted":
        yield "two calls at once should have been refused"
    if rank == case.victim and "two calls" not in seen["text"]:
        yield "the cause should have been told"


def _broken_edge(case: Case, _rank: int, seen: Mapping[str, Any]) -> Iterator[str]:
    if case.stage == "startup":
        yield from _right(seen)
        if (seen["backend"], seen["code"]) != ("nccl", EDGE_CODES[case.fault]):
            yield f"should have gone on with the fallback because of {EDGE_CODES[case.fault]}"
    elif seen["end"] not in ("AllReduceAborted", "CallMismatch"):
        yield "should have ended in an error"


def _odd_edge(_case: Case, _rank: int, seen: Mapping[str, Any]) -> Iterator[str]:
    yield from _right(seen)
    if seen["backend"] != "native":
        yield "an edge that delivers everything is sound"


_PROMISES = {
    "kill": _kill,
    "stop 3 s": _stop_3s,
    "stop": _stop,
    "exception": _exception,
    **dict.fromkeys(("skip", "size", "dtype", "algorithm", "tag"), _mismatch),
    "two at once": _two_at_once,
    **dict.fromkeys(EDGE_CODES, _broken_edge),
    **dict.fromkeys(("torn", "delayed"), _odd_edge),
}
