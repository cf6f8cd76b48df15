# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What carries all-reduces beside the slot, and the setting of vLLM that each depends on.

vLLM asks some other backends before the one in the slot, and a compiler pass can fuse an all-reduce
with the norm behind it into one kernel of FlashInfer's. Another backend is asked behind the slot:
it gets what ours declines, and all where the slot is empty.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyallreduce.config import VARIABLES

__all__ = ["EXCLUSIVE", "exclusive", "expected", "found", "standing", "switch_off"]

EXCLUSIVE = "PYALLREDUCE_VLLM_EXCLUSIVE"
_FUSED_BY_MODELS = "vllm.distributed.device_communicators.flashinfer_all_reduce"


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


def _setting(field: str) -> str:
    return f'--compilation-config \'{{"pass_config": {{"{field}": false}}}}\''


# Fields of vLLM's pass_config; the second is of 0.20, and a part of the model in later releases.
_FUSIONS = ("fuse_allreduce_rms", "fuse_minimax_qk_norm")
_VARIABLES = (
    "VLLM_ALLREDUCE_USE_FLASHINFER",
    "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC",
    "VLLM_USE_NCCL_SYMM_MEM",
    "VLLM_ALLREDUCE_USE_SYMM_MEM",
)
_FLASHINFER_BY_DEFAULT = (0, 29)  # the first release

_FUSED = Bypass("the fused all-reduce + RMSNorm pass", _setting(_FUSIONS[0]), _pass(_FUSIONS[0]))
_MINIMAX = Bypass("MiniMax's fused QK norm", _setting(_FUSIONS[1]), _pass(_FUSIONS[1]))
_FLASHINFER = Bypass("FlashInfer's all-reduce", f"{_VARIABLES[0]}=0", _enabled("fi_ar_comm"))
_PCIE = Bypass(
    "FlashInfer's all-reduce over PCIe", f"{_VARIABLES[1]}=0", _enabled("fi_pcie_ipc_ar_comm")
)
_NCCL = Bypass("NCCL's symmetric memory", f"{_VARIABLES[2]}=0", _nccl_symmetric)
_SEQUENCE = Bypass("the sequence-parallel pass", _setting("enable_sp"), _pass("enable_sp"))
_BEFORE = (_FUSED, _MINIMAX, _FLASHINFER, _PCIE, _NCCL, _SEQUENCE)
_BEHIND = Bypass("vLLM's symmetric memory", f"{_VARIABLES[3]}=0", _enabled("symm_mem_comm"))


def found(communicator: Any, config: Any) -> list[str]:
    """What carries all-reduces of `communicator` past its slot, with the setting that ends it."""
    return [str(bypass) for bypass in _BEFORE if bypass.in_use(communicator, config)]


def standing(communicator: Any, config: Any) -> list[str]:
    """What carries all-reduces of `communicator` beside NCCL, where its slot is empty."""
    beside = (*_BEFORE, _BEHIND)
    return [bypass.name for bypass in beside if bypass.in_use(communicator, config)]


def expected(
    environ: Mapping[str, str], release: tuple[int, ...], *, flashinfer: bool, empty: bool
) -> list[str]:
    """What may come first in a start with this environment; the command line is not known.

    Args:
        release: vLLM's.
        flashinfer: whether it is installed.
        empty: nothing of ours will stand in the slot.
    """

    def on(variable: str, default: str = "0") -> bool:
        return environ.get(variable, default) != "0"

    by_default = "1" if release >= _FLASHINFER_BY_DEFAULT else "0"
    may = [
        (_FUSED, flashinfer),
        (_FLASHINFER, flashinfer and on(_VARIABLES[0], by_default)),
        (_PCIE, flashinfer and on(_VARIABLES[1])),
        (_NCCL, on(_VARIABLES[2])),
        (_BEHIND, empty and on(_VARIABLES[3], "1")),
    ]
    return [str(bypass) for bypass, here in may if here]


def exclusive() -> bool:
    """Whether the user wants every all-reduce through the slot.

    Raises:
        ConfigError: the variable is neither 0 nor 1.
    """
    variable = next(v for v in VARIABLES if v.name == EXCLUSIVE)
    return variable.read(os.environ.get(EXCLUSIVE, "") or variable.default) is True


def switch_off(config: Any) -> None:
    """Before vLLM builds its communicator: all ways beside the slot are off, but for plain NCCL.

    Of this process alone; every rank does the same. The sequence-parallel pass stays: it calls
    NCCL, and a model may depend on it.
    """
    os.environ.update(dict.fromkeys(_VARIABLES, "0"))
    # vLLM reads its variables when it needs them, but remembers them once an engine is up, which
    # may be an earlier one in this process.
    envs = sys.modules.get("vllm.envs")
    forget = getattr(getattr(envs, "__getattr__", None), "cache_clear", None)
    if forget is not None:
        forget()
    passes = _passes(config)
    for field in _FUSIONS:
        if getattr(passes, field, False):
            setattr(passes, field, False)
    # Some models fuse an all-reduce and a norm themselves, and look at no setting: they ask for a
    # workspace of FlashInfer's, and do without where they get none.
    with contextlib.suppress(ImportError):
        workspaces: Any = importlib.import_module(_FUSED_BY_MODELS)
        workspaces._create_workspace = _no_workspace


def _no_workspace(*_args: object, **_kwargs: object) -> None:
    """What vLLM gets where FlashInfer can't serve a GPU."""
