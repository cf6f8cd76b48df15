# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What one backend is asked to measure: plain data, on its way from the starter to the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyallreduce.bench.options import Mode, default_calls

if TYPE_CHECKING:
    import torch

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """One backend's rows, the same on every rank.

    Args:
        backend, module, algorithms: of `peers.registry.Entry`.
        samples, warmup: of each cell; above 16 MiB as many as `seconds` hold.
        calls: all-reduces in one sample; None for a number that depends on the size.
    """

    backend: str
    module: str
    algorithms: tuple[str, ...]
    dtypes: tuple[str, ...]
    modes: tuple[Mode, ...]
    sizes: tuple[int, ...]
    samples: int
    warmup: int
    seconds: float
    calls: int | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        lists = ("algorithms", "dtypes", "modes", "sizes")
        return cls(**{**data, **{name: tuple(data[name]) for name in lists}})

    def cells(self) -> Iterator[tuple[str, Mode, int]]:
        """(dtype, mode, bytes) in the order of measuring."""
        for dtype in self.dtypes:
            for mode in self.modes:
                for nbytes in self.sizes:
                    yield dtype, mode, nbytes

    def calls_of(self, nbytes: int, mode: Mode, device: torch.device) -> int:
        return self.calls if self.calls is not None else default_calls(nbytes, mode, device)
