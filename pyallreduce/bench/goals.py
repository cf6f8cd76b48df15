# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The figures that the project holds itself to, and whether a cell of a comparison meets them.

A cell counts only where every peer that must take part did, at no more than 15 % above the time it
was measured at before (4 H100s with NVLink, bfloat16): a slow day of a peer is no victory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pyallreduce.bench.report import Record

__all__ = [
    "Cell",
    "Goal",
    "cells",
    "dtypes_apart",
    "goal_for",
    "judge",
    "long_tails",
    "reference_us",
]

Who = tuple[str, str]  # backend, algorithm
OURS: Who = ("pyallreduce", "auto")

_KIB, _MIB = 1 << 10, 1 << 20
_SLOW = 1.15
_TAIL, _DTYPE = 1.3, 1.03
_EAGER_BYTES, _EAGER_US = 8 * _KIB, 6.0


@dataclass(frozen=True)
class Goal:
    """Of the fastest peer's time, and of the floor's, at most so much.

    `excuse`: times the floor, is allowed where that is more than `of_peer`.
    """

    up_to: int
    of_peer: float
    of_floor: float = math.inf
    excuse: float = 0.0


# Mode graph, bfloat16, by world size.
_GOALS = {
    2: (
        Goal(32 * _KIB, 0.93),
        Goal(256 * _KIB, 0.95),
        Goal(_MIB - 1, 0.95, excuse=1.06),
        Goal(8 * _MIB, 0.95, of_floor=1.12, excuse=1.06),
        Goal(256 * _MIB, 0.95, of_floor=1.06),
    ),
    4: (
        Goal(32 * _KIB, 0.93),
        Goal(256 * _KIB, 0.87),
        Goal(_MIB - 1, 0.82),
        Goal(8 * _MIB, 0.82, of_floor=1.18),
        Goal(256 * _MIB, 0.96, of_floor=1.06),
    ),
}

_SIZES = tuple(
    n * unit
    for unit, counts in ((_KIB, (1, 8, 32, 64, 128, 256, 512)), (_MIB, (1, 2, 4, 8, 16, 64, 256)))
    for n in counts
)
_NCCL, _WIN = ("nccl", "default"), ("nccl_sym", "symmetric")
_ONE, _TWO = ("torch_symm", "one_shot"), ("torch_symm", "two_shot")
_VLLM, _FI = ("vllm", "default"), ("flashinfer", "one_shot")
_PUSH, _PULL = ("sglang", "one_shot_push"), ("sglang", "two_shot_pull")
_N = None

# µs at _SIZES; None where it was not measured.
_MEASURED: dict[int, dict[Who, tuple[float | None, ...]]] = {
    2: {
        _NCCL: (11.0, 12.3, 12.1, 12.5, 13.1, 14.9, 16.1, 20.6, 31.9, 38.2, 51.1, 80.0, 253, 890),
        _WIN: (8.3, 8.6, 11.2, 13.6, 17.4, 14.4, 20.5, 23.2, 23.8, 34.1, 51.8, 84.8, 311, 1168),
        _ONE: (8.5, 8.7, 8.8, 9.2, 10.0, 11.0, 12.2, 15.2, 22.0, 33.0, 56.3, 103, _N, _N),
        _TWO: (7.6, 7.6, 8.2, 8.7, 8.9, 8.8, 9.7, 11.7, 14.8, 23.3, 34.3, 60.3, 221, 832),
        _VLLM: (4.23, 4.56, 4.50, 4.58, 4.83, 5.28, 6.66, 8.82, 13.0, 20.5, 36.1, 68.2, 252, _N),
        _FI: (3.3, 3.06, 3.06, 2.99, 3.11, 3.59, 4.66, 7.02, _N, _N, _N, _N, _N, _N),
        _PUSH: (2.00, 2.24, 2.29, 2.39, 2.61, 3.11, 3.87, 5.11, 8.81, 15.2, 29.9, 72.6, _N, _N),
        _PULL: (_N, _N, _N, 5.4, 5.8, 5.9, 7.1, 8.4, 12.0, 17.7, 30.8, 56.7, 215, 813),
    },
    4: {
        _NCCL: (15.6, 16.2, 18.1, 17.3, 17.8, 18.9, 22.4, 25.7, 35.9, 48.9, 67.8, 103, 333, 1195),
        _WIN: (10.9, 11.7, 14.2, 17.7, 22.0, 22.9, 24.4, 28.9, 31.7, 44.5, 66.7, 109, 418, 1554),
        _ONE: (9.6, 11.1, 11.4, 12.2, 13.0, 20.3, 18.4, 23.4, 39.5, 76.4, 91.5, 175, _N, _N),
        _TWO: (8.5, 8.3, 9.1, 10.3, 10.7, 10.7, 11.8, 14.7, 21.7, 31.4, 52.9, 93.3, 342, 1318),
        _VLLM: (5.24, 5.44, 6.22, 6.37, 7.19, 7.87, 12.3, 13.9, 21.3, 35.8, 56.3, 98.4, 377, _N),
        _FI: (3.87, 3.76, 4.10, 4.58, 5.11, 5.82, 8.57, 15.3, _N, _N, _N, _N, _N, _N),
        _PUSH: (2.54, 2.59, 2.72, 3.16, 4.23, 5.61, 7.80, 13.0, 27.4, 48.0, 90.3, 189, _N, _N),
        _PULL: (_N, _N, _N, 6.6, 6.8, 7.1, 8.6, 11.4, 19.2, 26.1, 46.3, 89.5, 330, 1271),
    },
}  # fmt: skip
# NCCL with windows is welcome and not demanded.
_MANDATORY = (_NCCL, _ONE, _TWO, _VLLM, _FI, _PUSH, _PULL)


@dataclass(frozen=True)
class Cell:
    """One size of one mode and dtype: ours by default dispatch beside the fastest peer.

    `verdict` is "won", "lost: ..." or "not counted: ...".
    """

    world: int
    dtype: str
    mode: str
    bytes: int
    us: float
    peer: str
    peer_us: float
    ratio: float
    of_floor: float
    blocks: int | None
    verdict: str

    @property
    def won(self) -> bool:
        return self.verdict == "won"


def goal_for(nbytes: int, world: int) -> Goal | None:
    """What is demanded at this size in mode graph; None where nothing is."""
    return next((goal for goal in _GOALS.get(world, ()) if nbytes <= goal.up_to), None)


def reference_us(who: Who, nbytes: int, world: int) -> float | None:
    """The peer's time of before; between two measured sizes by a straight line of logarithms.

    None outside of what was measured.
    """
    column = _MEASURED.get(world, {}).get(who)
    if column is None:
        return None
    known = {size: us for size, us in zip(_SIZES, column, strict=True) if us is not None}
    below = max((size for size in known if size <= nbytes), default=None)
    above = min((size for size in known if size >= nbytes), default=None)
    if below is None or above is None:
        return None
    if below == above:
        return known[below]
    share = math.log(nbytes / below) / math.log(above / below)
    return math.exp((1 - share) * math.log(known[below]) + share * math.log(known[above]))


def cells(records: Iterable[Record]) -> list[Cell]:
    """A cell for each size that our default dispatch ran, in the order of the records."""
    groups: dict[tuple[int, str, str, int], dict[Who, Record]] = {}
    for r in records:
        key = (r.world, r.dtype, r.mode, r.bytes)
        groups.setdefault(key, {})[(r.backend, r.algorithm)] = r
    return [_cell(group) for group in groups.values() if OURS in group]


def long_tails(records: Iterable[Record]) -> list[Record]:
    """Cells of our default dispatch below 1 MiB whose p99 is above 1.3 times their median."""
    return [
        r
        for r in records
        if (r.backend, r.algorithm) == OURS and r.mode == "graph" and r.bytes < _MIB
        and r.us_p99 > _TAIL * r.us
    ]  # fmt: skip


def dtypes_apart(records: Iterable[Record]) -> list[Record]:
    """Cells of our default dispatch in another dtype that are more than 3 % slower than bfloat16 of
    as many bytes."""
    ours = [r for r in records if (r.backend, r.algorithm) == OURS and r.mode == "graph"]
    bfloat16 = {r.bytes: r.us for r in ours if r.dtype == "bfloat16"}
    return [r for r in ours if r.us > _DTYPE * bfloat16.get(r.bytes, math.inf)]


def judge(ours: Record, peers: Mapping[Who, Record]) -> str:
    """The verdict on one cell, from our default dispatch and all peers of the same cell."""
    if not ours.verified:
        return "lost: wrong result"
    right = {who: r for who, r in peers.items() if r.verified}
    if objection := _not_counted(ours, right):
        return f"not counted: {objection}"
    if not right:
        return "not counted: no peer"
    best = min(r.us for r in right.values())
    goal = goal_for(ours.bytes, ours.world)
    if goal is None or ours.floor is None or not _has_goal(ours):
        return _fastest(ours, best, right)
    floor = ours.floor
    allowed = max(goal.of_peer * best, goal.excuse * floor)
    if ours.us > allowed:
        return f"lost: {ours.us / best:.3f} of the fastest peer, at most {goal.of_peer:.2f}"
    if ours.us > goal.of_floor * floor:
        return f"lost: {ours.us / floor:.3f} of the floor, at most {goal.of_floor:.2f}"
    return "won"


def _cell(group: Mapping[Who, Record]) -> Cell:
    ours = group[OURS]
    peers = {who: r for who, r in group.items() if who[0] != OURS[0]}
    right = [r for r in peers.values() if r.verified]
    best = min(right, key=lambda r: r.us, default=None)
    return Cell(
        world=ours.world,
        dtype=ours.dtype,
        mode=ours.mode,
        bytes=ours.bytes,
        us=ours.us,
        peer=best.title if best is not None else "",
        peer_us=best.us if best is not None else math.nan,
        ratio=round(ours.us / best.us, 3) if best is not None and best.us > 0 else math.nan,
        of_floor=math.nan if ours.floor is None else round(ours.us / ours.floor, 3),
        blocks=ours.blocks,
        verdict=judge(ours, peers),
    )


def _not_counted(ours: Record, right: Mapping[Who, Record]) -> str:
    """What keeps the cell from counting: a peer that is missing or slower than it was."""
    if ours.floor is None:
        return ""  # no GPUs: gloo is the only peer
    expected = {
        who: us
        for who in _MANDATORY
        if (us := reference_us(who, ours.bytes, ours.world)) is not None
    }
    missing = [_name(who) for who in expected if who not in right]
    if missing:
        return f"without {', '.join(missing)}"
    if not _has_goal(ours):
        return ""  # the times of before are those of bfloat16 graphs
    for who, us in expected.items():
        if right[who].us > _SLOW * us:
            return f"{_name(who)} at {right[who].us:.2f} us was {us:.2f} before"
    return ""


def _has_goal(ours: Record) -> bool:
    return ours.mode == "graph" and ours.dtype == "bfloat16"


def _fastest(ours: Record, best: float, right: Mapping[Who, Record]) -> str:
    if ours.mode == "eager":
        return _eager(ours, best, right)
    if ours.us < best:
        return "won"
    return f"lost: {ours.us / best:.3f} of the fastest peer" if best > 0 else "lost"


def _eager(ours: Record, best: float, right: Mapping[Who, Record]) -> str:
    """Eager calls are judged by the host's time of one, where that was taken."""
    if ours.host_us is None:
        return "won" if ours.us < best else f"lost: {ours.us / best:.3f} of the fastest peer"
    hosts = [r.host_us for r in right.values() if r.host_us is not None]
    if hosts and ours.host_us >= min(hosts):
        return f"lost: {ours.host_us:.1f} us on the host, a peer {min(hosts):.1f}"
    if ours.bytes == _EAGER_BYTES and ours.host_us > _EAGER_US:
        return f"lost: {ours.host_us:.1f} us on the host, at most {_EAGER_US:.0f}"
    return "won"


def _name(who: Who) -> str:
    return who[0] if who[1] == "default" else " ".join(who)
