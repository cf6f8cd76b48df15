# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What SGLang asks before the slot, or in its stead, and the argument that each depends on.

In which releases that is so was read in those from 0.5.13 to 0.5.23, but for 0.5.21.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ["FLASHINFER", "found", "standing"]


@dataclass(frozen=True)
class Bypass:
    """One way round the slot: in use where one of SGLang's arguments is set, to anything, in the
    releases from `first` to `last`."""

    name: str
    arguments: tuple[str, ...]
    end: str
    first: tuple[int, ...] = (0,)
    last: tuple[int, ...] = (1,)

    def __str__(self) -> str:
        return f"{self.name} ({self.end} ends that)"


FLASHINFER = Bypass(
    "FlashInfer's all-reduce, by itself or with the norm behind it",
    ("enable_flashinfer_allreduce_fusion", "flashinfer_allreduce_fusion_backend"),
    "--enforce-disable-flashinfer-allreduce-fusion",
)
_ALL = (
    FLASHINFER,
    Bypass(
        "NCCL's symmetric memory",
        ("enable_symm_mem",),
        "leaving out --enable-symm-mem",
        last=(0, 5, 18),
    ),
    Bypass("mscclpp", ("enable_mscclpp",), "leaving out --enable-mscclpp", first=(0, 5, 14)),
)

# Behind the slot: they get what ours declines, and all where it is empty.
_SYMMETRIC = Bypass(
    "torch's symmetric memory", ("enable_torch_symm_mem",), "leaving out --enable-torch-symm-mem"
)
_PCIE, _PCIE_SETTING = "FlashInfer's all-reduce over PCIe", "SGLANG_ENABLE_PCIE_IPC_ALLREDUCE"


def found(server_args: Any, release: tuple[int, ...]) -> list[Bypass]:
    """What goes past us in this process of SGLang's `release`, by the server's arguments as SGLang
    has settled them."""
    return _in_use(_ALL, server_args, release)


def standing(server_args: Any, release: tuple[int, ...]) -> list[str]:
    """What carries all-reduces beside NCCL where the slot is empty."""
    names = [way.name for way in _in_use((*_ALL, _SYMMETRIC), server_args, release)]
    pcie = os.environ.get(_PCIE_SETTING, "").lower() in {"1", "true", "yes", "y"}
    return [*names, _PCIE] if pcie else names


def _in_use(ways: tuple[Bypass, ...], server_args: Any, release: tuple[int, ...]) -> list[Bypass]:
    places = (_settled(), server_args)
    there = (way for way in ways if way.first <= release[:3] <= way.last)
    return [way for way in there if any(_value(places, name) for name in way.arguments)]


def _settled() -> Any:
    """Where that is here, the arguments themselves may say what SGLang has decided otherwise."""
    context = sys.modules.get("sglang.srt.runtime_context")
    with contextlib.suppress(Exception):  # not there, or not yet
        return context.get_exec().comm  # type: ignore[union-attr]
    return None


def _value(places: tuple[Any, ...], name: str) -> Any:
    """Of the first place that knows the name."""
    for place in places:
        with contextlib.suppress(Exception):  # a bag of settings may refuse names in its own way
            return getattr(place, name)
    return None
