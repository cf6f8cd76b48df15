# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What a sweep measures: sizes, dtypes, modes, and how often; the same on every rank."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPE_NAMES",
    "MODES",
    "Mode",
    "Options",
    "default_calls",
    "parse_modes",
    "parse_size",
]

Mode = Literal["graph", "graph-cold", "graph-chain", "eager"]
MODES: tuple[Mode, ...] = get_args(Mode)

# nccl-tests' names, and torch's.
DTYPE_NAMES = {
    "float": "float32",
    "half": "float16",
    "bfloat16": "bfloat16",
    "float32": "float32",
    "float16": "float16",
}
_KIB, _MIB = 1 << 10, 1 << 20
_UNITS = {"": 1, "K": _KIB, "M": _MIB, "G": 1 << 30}


@dataclass(frozen=True)
class Options:
    """One sweep.

    Args:
        min_bytes, max_bytes, factor: message sizes, each `factor` times the one before.
        dtypes: names of torch dtypes.
        modes: "graph" (CUDA graphs) and "eager", in the order of measuring.
        backends: names of `backends.NAMES`; empty for all that serve here.
        calls: all-reduces in one sample; None for a number that depends on the size.
        warmup: samples that are not counted.
        samples: samples that are: replays of a graph, or rounds of eager calls.
        check: verify each cell before it is timed.
    """

    min_bytes: int
    max_bytes: int
    factor: int
    dtypes: tuple[str, ...]
    modes: tuple[Mode, ...]
    backends: tuple[str, ...]
    calls: int | None
    warmup: int
    samples: int
    check: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Options:
        lists = {name: tuple(data[name]) for name in ("dtypes", "modes", "backends")}
        return cls(**{**data, **lists})

    def sizes(self, itemsize: int) -> Iterator[int]:
        """Message sizes in bytes, whole elements each."""
        size = self.min_bytes
        while size <= self.max_bytes:
            yield size // itemsize * itemsize
            size *= self.factor

    def calls_of(self, nbytes: int, mode: Mode, device: torch.device) -> int:
        """All-reduces in one sample of this size."""
        return self.calls if self.calls is not None else default_calls(nbytes, mode, device)


def default_calls(nbytes: int, mode: Mode, device: torch.device) -> int:
    """All-reduces in one sample where the user does not say.

    Eager calls on a GPU are as many as in a graph: among few of them the first one counts, whose
    launch begins in a host that has waited.
    """
    if device.type == "cpu":  # each takes its time
        return 20 if nbytes <= 64 * _KIB else 5 if nbytes <= _MIB else 1
    if mode == "graph-chain":  # three kernels a call
        return 100 if nbytes <= _MIB else 25
    return 200 if nbytes <= _MIB else 50


def parse_modes(text: str) -> tuple[Mode, ...]:
    """Modes from "graph,eager", in the order of `MODES`.

    Raises:
        ValueError: an unknown one.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in MODES:
            message = f"{name!r}: expected modes of {', '.join(MODES)}"
            raise ValueError(message)
    return tuple(mode for mode in MODES if mode in names)


def parse_size(text: str) -> int:
    """Bytes from "8", "1K", "32M" or "1G", as nccl-tests takes them.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d{1,12})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        message = f"{text!r}: expected bytes such as 8, 1K, 32M or 1G"
        raise ValueError(message)
    return int(match[1]) * _UNITS[match[2].upper()]
