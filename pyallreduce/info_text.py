# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`pyallreduce info` as text, for people and for issue reports."""

from __future__ import annotations

from collections.abc import Iterator

from pyallreduce.info import Budget, Info

__all__ = ["lines"]

_NATIVE = {
    "cuda": "built with CUDA",
    "host": "between processes of the CPU only",
    "missing": "not built",
    "broken": "does not load",
}


def lines(info: Info) -> list[str]:
    """All sections, one after the other."""
    return [
        *_versions(info),
        *_settings(info),
        *_gpus(info),
        *_groups(info),
        *_engines(info),
        *_slab(info),
        *_errors(info),
    ]


def _versions(info: Info) -> Iterator[str]:
    width = max(len(name) for name in (*info.versions, "native module"))
    yield from (f"{name:{width}}  {version}" for name, version in info.versions.items())
    status, detail = info.native["status"], info.native["detail"]
    yield f"{'native module':{width}}  {_NATIVE[status]} ({detail})"
    yield f"{'machine':{width}}  {info.machine['processor']}, {info.machine['cpus']} CPUs"
    yield f"{'system':{width}}  {info.machine['system']}"


def _settings(info: Info) -> Iterator[str]:
    if info.settings_error:
        yield ""
        yield f"Settings refused, and with them every start: {info.settings_error}"
    elif info.settings:
        yield ""
        yield from (f"{name}={value}" for name, value in info.settings.items())
    yield ""
    yield f"Tuned tables: {info.tuned}"


def _gpus(info: Info) -> Iterator[str]:
    yield ""
    if not info.matrix.uuids:
        yield f"GPUs: none ({info.matrix.error or 'NVML lists none'})"
        return
    yield "GPUs:"
    for index, (name, uuid) in enumerate(zip(info.matrix.names, info.matrix.uuids, strict=True)):
        yield f"  GPU{index}  {name}  {uuid}"
    yield ""
    yield from (f"  {line}" for line in info.matrix.lines())


def _groups(info: Info) -> Iterator[str]:
    for group in info.groups:
        detail = f": {group.detail}." if group.detail else "."
        yield ""
        yield f"{group.name}: {group.backend}"
        yield f"  reason  {group.code}: {group.cause[:-1]}{detail}"
        yield f"  remedy  {group.remedy}"


def _engines(info: Info) -> Iterator[str]:
    if info.engines:
        yield ""
        yield from info.engines


def _slab(info: Info) -> Iterator[str]:
    if not info.budgets:
        return
    names = [name for name, _ in info.budgets[0].regions]
    width = max(len(name) for name in (*names, "each rank shares"))
    yield ""
    yield "Slab, bytes:"
    yield _row("ranks", width, [str(budget.world) for budget in info.budgets])
    for index, name in enumerate(names):
        yield _row(name, width, [_bytes(budget, index) for budget in info.budgets])
    yield _row("each rank shares", width, [f"{budget.total:,}" for budget in info.budgets])


def _bytes(budget: Budget, index: int) -> str:
    return f"{budget.regions[index][1]:,}"


def _row(name: str, width: int, cells: list[str]) -> str:
    return f"  {name:{width}}  " + "  ".join(f"{cell:>12}" for cell in cells)


def _errors(info: Info) -> Iterator[str]:
    if info.errors:
        yield ""
        yield from (f"Not answered: {error}" for error in info.errors)
