# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What `pyallreduce info` says about the engines on this machine, without importing any of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from importlib.metadata import Distribution, distributions, entry_points
from pathlib import Path

from packaging.version import Version

from pyallreduce.integrations import sglang_bypass, vllm_bypass
from pyallreduce.integrations.contract import SGLANG, VLLM_CPU, VLLM_CUDA, Contract, problems

__all__ = ["lines"]

_PLUGIN = "pyallreduce"
_GROUPS = {"vllm": "vllm.general_plugins", "sglang": "sglang.srt.plugins"}
_FILTERS = {"vllm": "VLLM_PLUGINS", "sglang": "SGLANG_PLUGINS"}
_SERVES = "the plugin loads; tensor-parallel groups use what is decided above"
_INVARIANT = "VLLM_BATCH_INVARIANT"
_INVARIANT_SWITCHES_OFF = (0, 30, 999)  # up to 0.30; 0.31 was not looked at
_SGLANG_FIRST = f"  {sglang_bypass.FLASHINFER} comes first for some models, from Hopper on"
_CONTRACTS: dict[str, tuple[Contract, ...]] = {"vllm": (VLLM_CUDA, VLLM_CPU), "sglang": (SGLANG,)}


def lines(environ: Mapping[str, str] = os.environ) -> list[str]:
    """One line an engine: whether it is here, and whether its next start uses pyallreduce.

    Below each stands what would carry all-reduces past us.
    """
    root = _root("vllm")
    past = [] if root is None else [f"  {line}" for line in _bypasses(environ, _version(root))]
    vllm, sglang = _engine("vllm", environ), _engine("sglang", environ)
    first = [_SGLANG_FIRST] if sglang.endswith(_SERVES) else []
    return [vllm, *past, sglang, *first]


def _engine(package: str, environ: Mapping[str, str]) -> str:
    root = _root(package)
    if root is None:
        return f"{package}: not installed"
    owner, version = _distribution(root), _version(root)
    name = f"{owner.name if owner is not None else package} {version}"
    broken = [problems(contract, version, root) for contract in _CONTRACTS[package]]
    why_not = _plugin(package, environ)
    if not why_not and all(broken):  # else the platform decides which contract counts
        why_not = "; ".join(broken[0])
    if why_not:
        return f"{name}: stays as it is: {why_not}"
    if name.startswith("vllm ") and _is_switched_off(environ, version):
        return f"{name}: stays as it is: {_INVARIANT}=1 switches custom all-reduces off in it"
    backend = environ.get("PYALLREDUCE_BACKEND", "")
    if backend == "nccl":
        return f"{name}: the plugin loads, and PYALLREDUCE_BACKEND=nccl leaves its slot empty"
    return f"{name}: {_SERVES}"


def _is_switched_off(environ: Mapping[str, str], version: str) -> bool:
    """Whether vLLM for GPUs, of this version, would set its --disable-custom-all-reduce itself."""
    known = version != "unknown" and Version(version).release <= _INVARIANT_SWITCHES_OFF
    return known and environ.get(_INVARIANT) == "1"


def _plugin(package: str, environ: Mapping[str, str]) -> str:
    """Why the engine would not load our plugin; empty if it would."""
    if not any(entry.name == _PLUGIN for entry in entry_points(group=_GROUPS[package])):
        return f"no entry point in {_GROUPS[package]}: reinstall pyallreduce"
    allowed = environ.get(_FILTERS[package])
    if allowed is None or _PLUGIN in _listed(package, allowed):
        return ""
    return f"{_FILTERS[package]}={allowed} leaves {_PLUGIN} out"


def _listed(package: str, allowed: str) -> list[str]:
    """The names in an engine's list of plugins, as that engine reads it."""
    if package == "vllm":
        return allowed.split(",")  # a space is a part of the name, and an empty list allows none
    return [name.strip() for name in allowed.split(",")] if allowed else [_PLUGIN]


def _root(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _version(root: Path) -> str:
    owner = _distribution(root)
    return "unknown" if owner is None else owner.version


def _distribution(root: Path) -> Distribution | None:
    """Whose files these are: vLLM's package comes in distributions of several names."""
    beside = {d.name.lower(): d for d in distributions(path=[str(root.parent)]) if d.name}
    names = (root.name, f"{root.name}-cpu")
    return next((beside[name] for name in names if name in beside), None)


def _bypasses(environ: Mapping[str, str], version: str) -> list[str]:
    """What comes before the plugin, or before NCCL, as far as the environment tells."""
    if environ.get(vllm_bypass.EXCLUSIVE) == "1":
        return [f"{vllm_bypass.EXCLUSIVE}=1: no other backend comes first"]
    release = Version(version).release if version != "unknown" else ()
    flashinfer = importlib.util.find_spec("flashinfer") is not None
    empty = environ.get("PYALLREDUCE_BACKEND") == "nccl"
    first = vllm_bypass.expected(environ, release, flashinfer=flashinfer, empty=empty)
    if not first and not empty:
        return ["FlashInfer is not installed: nothing goes past the plugin by default"]
    where = f"comes before {'NCCL' if empty else 'the plugin'} where the GPU supports it"
    hint = f"{vllm_bypass.EXCLUSIVE}=1 ends all of that"
    return [*(f"{one} {where}" for one in first), hint]
