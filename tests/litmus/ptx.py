# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The PTX memory model as constraints for z3: may a small program have a given outcome?

Written from the published axioms: PTX ISA, "Memory Consistency Model", and Lustig, Sahasrabuddhe,
Giroux, ASPLOS 2019. All accesses are of one size and by the generic proxy, so that two accesses
overlap if they name the same location; a vector is one location a word. A polling loop is one read
of its last value; what a loop does to a later store of its thread is a dependency.

The axioms know threads, not grids. `Boundary` says what is added for two grids of one stream.

Every derived relation (causality, observation) is only bounded from below: each axiom forbids, so
that z3 finds an execution exactly if one exists with the least such relations.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any, Literal

import z3

Scope = Literal["cta", "gpu", "sys"]
Sem = Literal["weak", "relaxed", "acquire", "release", "acq_rel", "sc"]
HOST = -1  # the device of a CPU thread

_ACQUIRES = ("acquire", "acq_rel", "sc")
_RELEASES = ("release", "acq_rel", "sc")


class Boundary(enum.Enum):
    """What orders a grid and the next one of its stream."""

    NOTHING = 0  # the axioms alone
    LOCAL = 1  # the earlier grid causes the later one: what CUDA promises within a device
    # The stated assumption: the earlier grid's writes are performed at system scope as well, before
    # the later one goes on. What is written behind a boundary then carries causality, as if by a
    # release at system scope, to whoever acquires it or has observed it before a boundary.
    PERFORMED = 2


@dataclass(eq=False)
class Thread:
    """One thread of one grid; program order is the order of the calls."""

    litmus: Litmus
    device: int
    cta: int
    grid: int
    events: list[Event] = field(default_factory=list)

    def ld(self, place: str, sem: Sem = "weak", scope: Scope = "sys") -> Event:
        return self._add("R", place, None, sem, scope)

    def st(self, place: str, value: int, sem: Sem = "weak", scope: Scope = "sys") -> Event:
        return self._add("W", place, value, sem, scope)

    def fence(self, sem: Sem, scope: Scope = "sys") -> Event:
        return self._add("F", "", None, sem, scope)

    def arrive(self) -> Event:
        """At a barrier: see `Litmus.barrier`."""
        return self._add("B", "", None, "relaxed", "cta")

    def exchange(self, place: str, value: int, sem: Sem, scope: Scope) -> Event:
        """Returns its read; its write follows in program order."""
        read = self._add("R", place, None, sem, scope)
        self.litmus.atoms.append((read, self._add("W", place, value, sem, scope)))
        return read

    def _add(self, kind: str, place: str, value: int | None, sem: Sem, scope: Scope) -> Event:
        event = Event(self, kind, place, value, sem, scope)
        self.events.append(event)
        return event


@dataclass(eq=False)
class Event:
    """R, W, F or B (a barrier), by a thread; a location's initial value is a write of no thread."""

    thread: Thread | None
    kind: str
    place: str
    value: int | None
    sem: Sem
    scope: Scope

    @property
    def strong(self) -> bool:
        return self.sem != "weak"

    def includes(self, other: Thread) -> bool:
        """Whether this operation's scope has that thread in it."""
        mine = self.thread
        if mine is None or self.scope == "sys":
            return True
        if mine.device != other.device or mine.device == HOST:
            return mine is other
        return self.scope == "gpu" or mine.cta == other.cta


@dataclass
class Litmus:
    """A program. `depends` are pairs (read, write): the write would be other without the read."""

    boundary: Boundary = Boundary.NOTHING
    threads: list[Thread] = field(default_factory=list)
    atoms: list[tuple[Event, Event]] = field(default_factory=list)
    depends: list[tuple[Event, Event]] = field(default_factory=list)
    meetings: list[tuple[Event, Event]] = field(default_factory=list)
    _named: dict[str, Event] = field(default_factory=dict)

    def thread(self, device: int = 0, cta: int | None = None, grid: int = 0) -> Thread:
        """A thread of a CTA of its own, unless `cta` says which."""
        made = Thread(self, device, len(self.threads) + 1000 if cta is None else cta, grid)
        self.threads.append(made)
        return made

    def host(self) -> Thread:
        return self.thread(HOST)

    def barrier(self, *threads: Thread) -> None:
        """These threads of a CTA meet: what each did before causes what the others do behind."""
        assert len({(t.device, t.cta, t.grid) for t in threads}) == 1
        self.meetings += permutations([t.arrive() for t in threads], 2)

    def name(self, **reads: Event) -> Litmus:
        """Itself, with names for `may_read`."""
        self._named.update(reads)
        return self

    def may_read(self, **values: int) -> bool:
        """Whether some execution has each named read return that value."""
        return self.allows(lambda x: z3.And([x.reads(self._named[n], values[n]) for n in values]))

    def allows(self, outcome: Callable[[Execution], Any]) -> bool:
        """Whether some execution has this outcome, an expression over an `Execution`."""
        execution = Execution(self)
        execution.solver.add(outcome(execution))
        answer = execution.solver.check()
        assert answer != z3.unknown
        return bool(answer == z3.sat)


class Execution:
    """One candidate execution: the relations as z3 variables, and the axioms on them."""

    def __init__(self, litmus: Litmus) -> None:
        self.solver = z3.Solver()
        self._litmus = litmus
        places = dict.fromkeys(e.place for t in litmus.threads for e in t.events if e.place)
        self._init = [Event(None, "W", place, 0, "relaxed", "sys") for place in places]
        self._events = self._init + [e for t in litmus.threads for e in t.events]
        self._rf = self._relation("rf", self._pairs("W", "R"))
        self._co = self._relation("co", self._pairs("W", "W"))
        self._sc = self._relation("sc", self._fences())
        every = list(permutations(self._events, 2))
        self._causes = self._relation("bc", every)
        self._observes = self._relation("obs", self._pairs("W", "R"))
        self._reads_one_write()
        self._coherence_is_an_order()
        self._observation()
        self._base_causality()
        self._axioms()

    # ---- what an outcome is made of --------------------------------------------------------------

    def reads(self, read: Event, value: int) -> Any:
        """The read returns `value`."""
        return z3.Or([self._rf[w, r] for w, r in self._rf if r is read and w.value == value])

    def last(self, write: Event) -> Any:
        """The write is what its location holds in the end."""
        return z3.And([self._co[a, b] for a, b in self._co if b is write])

    # ---- relations -------------------------------------------------------------------------------

    def _relation(self, name: str, pairs: Any) -> dict[tuple[Event, Event], Any]:
        at = {event: i for i, event in enumerate(self._events)}
        return {(a, b): z3.Bool(f"{name}_{at[a]}_{at[b]}") for a, b in pairs}

    def _pairs(self, first: str, second: str) -> Iterator[tuple[Event, Event]]:
        for a, b in product(self._events, self._events):
            if a is not b and a.kind == first and b.kind == second and a.place == b.place:
                yield a, b

    def _fences(self) -> list[tuple[Event, Event]]:
        fences = [e for e in self._events if e.kind == "F" and e.sem == "sc"]
        return [(a, b) for a, b in permutations(fences, 2) if _morally_strong(a, b)]

    def _reads_one_write(self) -> None:
        for read in (e for e in self._events if e.kind == "R"):
            self.solver.add(z3.PbEq([(v, 1) for (_, r), v in self._rf.items() if r is read], 1))

    def _coherence_is_an_order(self) -> None:
        co, add = self._co, self.solver.add
        for (a, b), before in co.items():
            add(z3.Not(z3.And(before, co[b, a])))
            if a.thread is None:
                add(before)
            elif b.thread is not None and _morally_strong(a, b):
                add(z3.Or(before, co[b, a]))
            for (c, d), after in co.items():
                if b is c and a is not d:
                    add(z3.Implies(z3.And(before, after), co[a, d]))

    def _observation(self) -> None:
        for (w, r), reads in self._rf.items():
            if _morally_strong(w, r):
                self.solver.add(z3.Implies(reads, self._observes[w, r]))
            for read, write in self._litmus.atoms:  # an atomic passes an observation on
                if (w, read) in self._observes and (write, r) in self._observes and r is not read:
                    passed = z3.And(self._observes[w, read], self._observes[write, r])
                    self.solver.add(z3.Implies(passed, self._observes[w, r]))

    def _base_causality(self) -> None:
        bc, add = self._causes, self.solver.add
        for (a, b), causes in bc.items():
            if (a.thread is None and b.thread is not None) or _program_order(a, b):
                add(causes)
            if self._litmus.boundary is not Boundary.NOTHING and _stream_order(a, b):
                add(causes)
        for pair in self._litmus.meetings:
            add(bc[pair])
        for (first, write), (read, last) in product(self._releases(), self._acquires()):
            if (write, read) in self._observes and _morally_strong(first, last):
                add(z3.Implies(self._observes[write, read], bc[first, last]))
        for pair, before in self._sc.items():
            add(z3.Implies(before, bc[pair]))
        if self._litmus.boundary is Boundary.PERFORMED:
            self._performed()
        for (a, b), first in bc.items():
            for c in self._events:
                if c is not a and c is not b:
                    add(z3.Implies(z3.And(first, bc[b, c]), bc[a, c]))

    def _performed(self) -> None:
        """Behind a boundary all that was before it is performed; see `Boundary`."""
        for (w, r), observed in self._observes.items():
            firsts = [e for e in self._events if _stream_order(e, w)]
            lasts = [e for e in self._events if _stream_order(r, e)]
            if w.thread is not None:
                lasts += [e for x, e in self._acquires() if x is r and e.includes(w.thread)]
            for first, last in product(firsts, lasts):
                if first is not last:
                    self.solver.add(z3.Implies(observed, self._causes[first, last]))

    def _releases(self) -> Iterator[tuple[Event, Event]]:
        """Release patterns, as (the first operation, the write that is observed)."""
        for a in self._events:
            if a.thread is None or a.sem not in _RELEASES:
                continue
            if a.kind == "W":
                yield a, a
            for b in a.thread.events:
                same = a.kind == "F" or a.place == b.place
                if a.kind != "R" and b.kind == "W" and b.strong and _program_order(a, b) and same:
                    yield a, b

    def _acquires(self) -> Iterator[tuple[Event, Event]]:
        """Acquire patterns, as (the read that observes, the last operation)."""
        for b in self._events:
            if b.thread is None or b.sem not in _ACQUIRES:
                continue
            if b.kind == "R":
                yield b, b
            for a in b.thread.events:
                same = b.kind == "F" or a.place == b.place
                if b.kind != "W" and a.kind == "R" and a.strong and _program_order(a, b) and same:
                    yield a, b

    def _cause(self, a: Event, b: Event) -> Any:
        """Causality order, between operations on one location."""
        by_observation = [
            z3.And(seen, self._causes[r, b])
            for (w, r), seen in self._observes.items()
            if w is a and r is not b
        ]
        return z3.Or(self._causes[a, b], *by_observation)

    def _from_read(self, read: Event, write: Event) -> Any:
        """The read returns something that `write` has overwritten."""
        return z3.Or(
            [
                z3.And(reads, self._co[w, write])
                for (w, r), reads in self._rf.items()
                if r is read and w is not write
            ]
        )

    # ---- axioms ----------------------------------------------------------------------------------

    def _axioms(self) -> None:
        add = self.solver.add
        for a, b in self._co:  # Coherence
            if a.thread is not None and b.thread is not None:
                add(z3.Implies(self._cause(a, b), self._co[a, b]))
        for (w, r), reads in self._rf.items():  # Causality
            if w.thread is not None:
                add(z3.Not(z3.And(reads, self._cause(r, w))))
            add(z3.Not(z3.And(self._from_read(r, w), self._cause(w, r))))
        for read, write in self._litmus.atoms:  # Atomicity
            for w in (a for a, b in self._co if b is write and a.thread is not None):
                if _morally_strong(w, write) and _morally_strong(w, read):
                    between = z3.And(self._from_read(read, w), self._co[w, write])
                    add(z3.Not(between))
        self._fence_sc()
        self._sc_per_location()
        self._no_thin_air()

    def _fence_sc(self) -> None:
        for (a, b), before in self._sc.items():
            self.solver.add(before != self._sc[b, a])
            self.solver.add(z3.Implies(self._causes[a, b], before))
        self._acyclic("fence", [(a, b, v) for (a, b), v in self._sc.items()])

    def _sc_per_location(self) -> None:
        edges: list[tuple[Event, Event, Any]] = []
        for thread in self._litmus.threads:
            for a, b in permutations(thread.events, 2):
                if a.place and a.place == b.place and _program_order(a, b):
                    edges.append((a, b, z3.BoolVal(True)))
        strong = [(a, b, v) for r in (self._rf, self._co) for (a, b), v in r.items()]
        strong += [(r, w, self._from_read(r, w)) for w, r in self._rf]
        edges += [(a, b, v) for a, b, v in strong if _morally_strong(a, b)]
        self._acyclic("location", edges)

    def _no_thin_air(self) -> None:
        edges = [(w, r, reads) for (w, r), reads in self._rf.items()]
        edges += [(r, w, z3.BoolVal(True)) for r, w in self._litmus.depends]
        self._acyclic("air", edges)

    def _acyclic(self, name: str, edges: list[tuple[Event, Event, Any]]) -> None:
        at = {event: z3.Int(f"{name}_{i}") for i, event in enumerate(self._events)}
        for a, b, holds in edges:
            self.solver.add(z3.Implies(holds, at[a] < at[b]))


def _program_order(a: Event, b: Event) -> bool:
    if a.thread is None or a.thread is not b.thread:
        return False
    return a.thread.events.index(a) < a.thread.events.index(b)


def _stream_order(a: Event, b: Event) -> bool:
    x, y = a.thread, b.thread
    return x is not None and y is not None and x.device == y.device != HOST and x.grid < y.grid


def _morally_strong(a: Event, b: Event) -> bool:
    if a.thread is None or b.thread is None or a.thread is b.thread:
        return True
    return a.strong and b.strong and a.includes(b.thread) and b.includes(a.thread)
