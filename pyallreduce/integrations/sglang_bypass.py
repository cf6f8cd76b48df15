# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What SGLang asks before the slot, or in its stead, and the argument that each depends on."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ["FLASHINFER", "found"]


@dataclass(frozen=True)
class Bypass:
    """One way round the slot: in use where one of SGLang's arguments is set, to anything."""

    name: str
    arguments: tuple[str, ...]
    end: str

    def __str__(self) -> str:
        return f"{self.name} ({self.end} ends that)"


FLASHINFER = Bypass(
    "FlashInfer's all-reduce, by itself or with the norm behind it",
    ("enable_flashinfer_allreduce_fusion", "flashinfer_allreduce_fusion_backend"),
    "--enforce-disable-flashinfer-allreduce-fusion",
)
_ALL = (
    FLASHINFER,
    Bypass("NCCL's symmetric memory", ("enable_symm_mem",), "leaving out --enable-symm-mem"),
    Bypass("mscclpp", ("enable_mscclpp",), "leaving out --enable-mscclpp"),
)


def found(server_args: Any) -> list[Bypass]:
    """What goes past us in this process, by the server's arguments as SGLang has settled them."""
    places = (server_args, _settled())
    return [
        way
        for way in _ALL
        if any(_value(place, name) for place in places for name in way.arguments)
    ]


def _settled() -> Any:
    """From 0.5.20 on what counts is not in the arguments themselves, but here."""
    context = sys.modules.get("sglang.srt.runtime_context")
    with contextlib.suppress(Exception):  # not there, or not yet
        return context.get_exec().comm  # type: ignore[union-attr]
    return None


def _value(place: Any, name: str) -> Any:
    with contextlib.suppress(Exception):  # a bag of settings may refuse names in its own way
        return getattr(place, name, None)
    return None
