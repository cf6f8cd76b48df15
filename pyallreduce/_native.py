# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Load the compiled module, and tell "not built" from "does not load"."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyallreduce.facts import PROTOCOL_VERSION, Module

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["NativeState", "load", "state"]

_NAME = "pyallreduce._C"


@dataclass(frozen=True)
class NativeState:
    """`status`: "cuda" (built with CUDA), "host" (without), "missing" or "broken"; `detail`:
    more."""

    status: Module
    detail: str


def load() -> ModuleType:
    """The module, or the loader's ImportError."""
    return importlib.import_module(_NAME)


def _hidden() -> str:
    """That this package, a checkout's, hides an installed one with the module; else empty."""
    here = Path(__file__).resolve().parent
    for found in importlib.metadata.distributions(name="pyallreduce"):
        other = Path(str(found.locate_file("pyallreduce"))).resolve()
        if other != here and any(other.glob("_C.*.so")):
            return (
                f" in {here}, which hides the package installed in {other}: start from another "
                "folder, or `pip install -e .`"
            )
    return ""


@functools.cache
def state() -> NativeState:
    """What became of the module. Never raises."""
    try:
        if importlib.util.find_spec(_NAME) is None:
            return NativeState("missing", f"pyallreduce/_C was not built{_hidden()}")
        module = load()
    except (ImportError, OSError) as error:
        return NativeState("broken", str(error))
    if module.PROTOCOL_VERSION != PROTOCOL_VERSION:
        text = f"pyallreduce/_C speaks protocol {module.PROTOCOL_VERSION}, and this package "
        return NativeState("broken", f"{text}{PROTOCOL_VERSION}: build it again")
    if not module.cuda_built:
        return NativeState(
            "host", "built without CUDA: nvcc was not found, or PYALLREDUCE_CUDA=OFF"
        )
    version = int(module.cuda_version)
    built = f"CUDA {version // 1000}.{version % 1000 // 10}, architectures {module.architectures}"
    return NativeState("cuda", built)
