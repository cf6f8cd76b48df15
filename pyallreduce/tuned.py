# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The dispatch tables that `pyallreduce tune` has measured: a file of them, one a kind of group.

A table holds for one GPU model, world size, kind of link and version of this package and of its
protocol: with other mailboxes the same entry is another grid. A file that is missing is no table;
one that can't be read or was written for something else is ignored with a warning: nothing here
ever stops a start-up.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from pyallreduce import wire
from pyallreduce.errors import WireError
from pyallreduce.facts import PROTOCOL_VERSION, Facts
from pyallreduce.table import Entry, Table, TableError

__all__ = ["FORMAT", "OFF", "Machine", "agreed", "load", "machine_of", "path_of", "save"]

logger = logging.getLogger(__name__)

FORMAT = 1  # raised with every change of the file's layout
OFF = "off"
_NAME = "tuning.json"
_LARGEST_BYTES = 1 << 20
_LOCK_SECONDS = 10.0
_DISTRIBUTION = "pyallreduce"


@dataclass(frozen=True)
class Machine:
    """What a table was measured for."""

    gpu: str
    world: int
    link: str
    version: str

    def __str__(self) -> str:
        return f"{self.world} ranks on {self.gpu} by {self.link}, pyallreduce {self.version}"


def machine_of(facts: Sequence[Facts]) -> Machine:
    """The key of a group's table: the same on all ranks, from everybody's facts."""
    group = sorted(facts, key=lambda f: f.rank)
    if group[0].target == "host":
        return Machine("CPU", len(group), "host", _version())
    models = " and ".join(sorted({f.gpu_name for f in group}))
    shared = len({f.gpu_uuid for f in group}) < len(group)
    found = [a.link_to(b.gpu_uuid) for a, b in permutations(group, 2) if a.gpu_uuid != b.gpu_uuid]
    counts = sorted({link.nvlink if link is not None else 0 for link in found})
    link = "NVLink " + "/".join(map(str, counts)) if counts and counts[0] else "PCIe"
    return Machine(models, len(group), "one shared GPU" if shared else link, _version())


def path_of(setting: str) -> Path | None:
    """The file that `Config.tuning_file` means; None for "off" or where there is no place."""
    if setting == OFF:
        return None
    if setting:
        return Path(setting)
    with suppress(OSError, RuntimeError):  # no home
        return platformdirs.user_cache_path(_DISTRIBUTION) / _NAME
    return None


def load(machine: Machine, path: Path | None) -> Table | None:
    """The table for `machine`, or None. Never raises."""
    if path is None:
        return None
    try:
        for stored in _read(path):
            if stored["machine"] == asdict(machine):
                return Table(tuple(Entry(*row) for row in stored["entries"]), "tuned")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, TableError) as error:
        logger.warning("the tuned tables in %s are ignored: %s", path, error)
    return None


def save(machine: Machine, table: Table, path: Path) -> None:
    """Store the table for `machine`; other machines' stay, older versions' of this one go.

    Raises:
        OSError: the file can't be written; filelock.Timeout: another process keeps it locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
        others = []
        with suppress(
            OSError, ValueError, KeyError, TypeError
        ):  # a file that is no good is replaced
            others = [old for old in _read(path) if not _replaces(machine, old["machine"])]
        rows = [[e.up_to, e.algorithm, e.blocks, e.lanes] for e in table.entries]
        stored = [*others, {"machine": asdict(machine), "entries": rows}]
        _write(path, {"format": FORMAT, "tables": stored})


def agreed(frames: Sequence[bytes], nonce: bytes) -> Table | None:
    """The table that all ranks use, from everybody's `TableOffer` frames in rank order.

    Rank 0's, if every rank has the same one; else none. All ranks hold the same frames, so that all
    come to the same answer.
    """
    try:
        offers = [
            wire.decode(frame, wire.TableOffer, nonce=nonce, rank=rank, world=len(frames))
            for rank, frame in enumerate(frames)
        ]
    except WireError as error:
        logger.warning("the tuned tables are ignored: a rank's can't be read: %s", error)
        return None
    if len({offer.table for offer in offers}) > 1:
        logger.warning("the tuned tables are ignored: they are not the same on all ranks")
        return None
    return offers[0].table


def _read(path: Path) -> list[dict[str, Any]]:
    if path.stat().st_size > _LARGEST_BYTES:
        message = f"larger than {_LARGEST_BYTES} bytes"
        raise ValueError(message)
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        message = f"not of format {FORMAT}"
        raise ValueError(message)
    tables: list[dict[str, Any]] = content["tables"]
    return tables


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: readers take no lock."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8"
    ) as file:
        file.write(json.dumps(content, indent=1) + "\n")
    Path(file.name).chmod(0o644)  # ranks of other users read it where the place is shared
    os.replace(file.name, path)  # noqa: PTH105 - one atomic step


def _replaces(machine: Machine, old: dict[str, Any]) -> bool:
    return asdict(replace(machine, version=old["version"])) == old


def _version() -> str:
    package = "unknown"
    with suppress(importlib.metadata.PackageNotFoundError):
        package = importlib.metadata.version(_DISTRIBUTION)
    return f"{package}, protocol {PROTOCOL_VERSION}"
