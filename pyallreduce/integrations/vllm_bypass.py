# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What carries all-reduces past the slot, and the setting of vLLM that each depends on.

vLLM asks some other backends before the one in the slot, and a compiler pass can fuse an all-reduce
with the norm behind it into one kernel of FlashInfer's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyallreduce.config import VARIABLES

__all__ = ["EXCLUSIVE", "exclusive", "found", "switch_off"]

EXCLUSIVE = "PYALLREDUCE_VLLM_EXCLUSIVE"


@dataclass(frozen=True)
class Bypass:
    """One way round the slot: is it in use by (communicator, vLLM's config), and what ends it."""

    name: str
    setting: str
    in_use: Callable[[Any, Any], bool]

    def __str__(self) -> str:
        return f"{self.name} ({self.setting} ends that)"


def _enabled(slot: str) -> Callable[[Any, Any], bool]:
    def in_use(communicator: Any, _config: Any) -> bool:
        backend = getattr(communicator, slot, None)
        return backend is not None and not getattr(backend, "disabled", False)

    return in_use


def _pass(field: str) -> Callable[[Any, Any], bool]:
    def in_use(_communicator: Any, config: Any) -> bool:
        return bool(getattr(_passes(config), field, False))

    return in_use


def _passes(config: Any) -> Any:
    return getattr(getattr(config, "compilation_config", None), "pass_config", None)


def _nccl_symmetric(_communicator: Any, _config: Any) -> bool:
    return os.environ.get("VLLM_USE_NCCL_SYMM_MEM", "0") == "1"


_FUSION = "fuse_allreduce_rms"
_VARIABLES = (
    "VLLM_ALLREDUCE_USE_FLASHINFER",
    "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC",
    "VLLM_USE_NCCL_SYMM_MEM",
)
_BYPASSES = (
    Bypass(
        "the fused all-reduce + RMSNorm pass",
        '--compilation-config \'{"pass_config": {"fuse_allreduce_rms": false}}\'',
        _pass(_FUSION),
    ),
    Bypass("FlashInfer's all-reduce", f"{_VARIABLES[0]}=0", _enabled("fi_ar_comm")),
    Bypass(
        "FlashInfer's all-reduce over PCIe", f"{_VARIABLES[1]}=0", _enabled("fi_pcie_ipc_ar_comm")
    ),
    Bypass("NCCL's symmetric memory", f"{_VARIABLES[2]}=0", _nccl_symmetric),
    Bypass(
        "the sequence-parallel pass",
        '--compilation-config \'{"pass_config": {"enable_sp": false}}\'',
        _pass("enable_sp"),
    ),
)


def found(communicator: Any, config: Any) -> list[str]:
    """What carries all-reduces of `communicator` past its slot, with the setting that ends it."""
    return [str(bypass) for bypass in _BYPASSES if bypass.in_use(communicator, config)]


def exclusive() -> bool:
    """Whether the user wants every all-reduce through the slot.

    Raises:
        ConfigError: the variable is neither 0 nor 1.
    """
    variable = next(v for v in VARIABLES if v.name == EXCLUSIVE)
    return variable.read(os.environ.get(EXCLUSIVE, "") or variable.default) is True


def switch_off(config: Any) -> None:
    """Before vLLM builds its communicator: FlashInfer's and NCCL's ways round the slot are off.

    Of this process alone; every rank does the same.
    """
    os.environ.update(dict.fromkeys(_VARIABLES, "0"))
    passes = _passes(config)
    if getattr(passes, _FUSION, False):
        setattr(passes, _FUSION, False)
