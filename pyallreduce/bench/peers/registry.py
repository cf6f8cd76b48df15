# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Who can be measured, and whether he is there; imports no backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["ENTRIES", "Entry", "choose", "why_missing"]

_ANY_WORLD = tuple(range(2, 9))


@dataclass(frozen=True)
class Entry:
    """One backend: the rows of the comparison that come from one set of rank processes.

    Args:
        module: defines `make(algorithm, place)`, and `build(world, dtypes)` where `jit`.
        packages: any one of these has to be there; empty where torch alone will do.
        devices: where it runs.
        worlds: the numbers of ranks that it serves.
        jit: its kernels are compiled at first use: that is done before anything is timed.
        hidden: left out unless named.
    """

    name: str
    module: str
    algorithms: tuple[str, ...]
    packages: tuple[str, ...] = ()
    devices: tuple[Literal["cuda", "cpu"], ...] = ("cuda",)
    worlds: tuple[int, ...] = _ANY_WORLD
    jit: bool = False
    hidden: bool = False


_HERE = "pyallreduce.bench.peers"
_BOTH: tuple[Literal["cuda", "cpu"], ...] = ("cuda", "cpu")
ENTRIES = (
    Entry("pyallreduce", f"{_HERE}.ours", ("auto", "one_shot", "two_shot"), devices=_BOTH),
    Entry("nccl", f"{_HERE}.nccl", ("default",)),
    Entry("nccl_sym", f"{_HERE}.nccl", ("symmetric",)),
    Entry("torch_symm", f"{_HERE}.torch_symm", ("one_shot", "two_shot")),
    Entry(
        "vllm",
        f"{_HERE}.vllm",
        ("default",),
        packages=("vllm", "flashinfer"),
        worlds=(2, 4, 6, 8),
        jit=True,
    ),
    Entry(
        "flashinfer",
        f"{_HERE}.flashinfer",
        ("one_shot",),
        packages=("flashinfer",),
        worlds=(2, 4, 8),
        jit=True,
    ),
    Entry(
        "sglang",
        f"{_HERE}.sglang",
        ("one_shot_push", "two_shot_pull"),
        packages=("sglang",),
        jit=True,
    ),
    Entry("gloo", f"{_HERE}.gloo", ("default",), devices=("cpu",)),
    Entry(
        "fake",
        f"{_HERE}.fake",
        ("works", "hangs", "raises", "wrong"),
        devices=_BOTH,
        hidden=True,
    ),
)


def choose(names: Iterable[str], device: Literal["cuda", "cpu"]) -> list[Entry]:
    """The backends of this device, all that are not hidden or those named, ours first.

    A name may be "backend" or "backend:algorithm".

    Raises:
        ValueError: an unknown name.
    """
    wanted: dict[str, set[str]] = {}
    by_name = {entry.name: entry for entry in ENTRIES}
    for name in names:
        backend, _, algorithm = name.partition(":")
        if backend not in by_name or (algorithm and algorithm not in by_name[backend].algorithms):
            known = ", ".join(entry.name for entry in ENTRIES if not entry.hidden)
            message = f"{name!r}: expected one of {known}, or backend:algorithm"
            raise ValueError(message)
        algorithms = {algorithm} if algorithm else set(by_name[backend].algorithms)
        wanted.setdefault(backend, set()).update(algorithms)
    if not wanted:
        return [e for e in ENTRIES if device in e.devices and not e.hidden]
    chosen = [(e, tuple(a for a in e.algorithms if a in wanted.get(e.name, ()))) for e in ENTRIES]
    return [
        Entry(**{**vars(e), "algorithms": algorithms})
        for e, algorithms in chosen
        if algorithms and device in e.devices
    ]


def why_missing(entry: Entry, world: int) -> str:
    """Why this backend can't be run here; empty if it can be tried."""
    if world not in entry.worlds:
        return f"does not serve {world} ranks"
    if entry.packages and not any(_installed(package) for package in entry.packages):
        return f"not installed ({' or '.join(entry.packages)})"
    return ""


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
