# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Gather what this rank knows, without ever raising: `probe` gives `Facts`, errors included.

A rank that raised here would leave its peers waiting in the exchange that follows; what goes wrong
is data, for `selector.decide` to judge.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from pyallreduce import _native, nvml
from pyallreduce.facts import MAX_LINKS, PROTOCOL_VERSION, Facts, Link, Module, Target
from pyallreduce.nvml import GpuFacts, Matrix, matrix

if TYPE_CHECKING:
    import torch

    from pyallreduce.config import Config

__all__ = [
    "MAX_LINKS",
    "PROTOCOL_VERSION",
    "Facts",
    "Link",
    "Matrix",
    "foreign_processes",
    "matrix",
    "nccl_p2p_disabled",
    "probe",
]

T = TypeVar("T")

_PROC = Path("/proc")


def probe(rank: int, world: int, device: torch.device | None, config: Config) -> Facts:
    """Gather the facts of this rank. Never raises: what cannot be read is told in `error`.

    Args:
        rank: this rank in its group.
        world: the group's size.
        device: a CUDA device for the GPU's path; any other, or None, for the host's.
        config: the settings of this rank.
    """
    errors: list[str] = []
    target: Target = "cuda" if device is not None and device.type == "cuda" else "host"
    module = _attempt(errors, "the native module", _module, _Module())
    if module.detail:
        errors.append(module.detail)
    gpu = _Gpu()
    if device is not None and target == "cuda" and module.status == "cuda":
        gpu = _attempt(errors, "CUDA", lambda: _gpu(device), gpu)
    seen = GpuFacts(mig=False, confidential=False, links=())
    if gpu.uuid:
        seen = _attempt(errors, "NVML", lambda: nvml.read_gpu(gpu.uuid, gpu.bus_id), seen)
    return Facts(
        rank=rank,
        world=world,
        target=target,
        module=module.status,
        protocol=PROTOCOL_VERSION,
        boot_id=_attempt(errors, "the boot id", _boot_id, ""),
        pid=os.getpid(),
        pid_namespace=_attempt(errors, "the PID namespace", _pid_namespace, 0),
        gpu_uuid=gpu.uuid,
        gpu_name=gpu.name,
        bus_id=gpu.bus_id,
        capability=gpu.capability,
        sm_count=gpu.sm_count,
        driver_cuda=module.driver_cuda if target == "cuda" else 0,
        build_cuda=module.build_cuda,
        has_kernel=gpu.has_kernel,
        mig=seen.mig,
        confidential=seen.confidential,
        wsl=_is_wsl(),
        nccl_p2p_disabled=nccl_p2p_disabled(),
        backend=config.backend,
        config_digest=config.digest(),
        share_gpu=config.share_gpu,
        links=seen.links,
        error="; ".join(errors),
    )


def nccl_p2p_disabled() -> bool:
    """Whether NCCL is told to do without peer-to-peer: a statement that it does not work here."""
    return os.environ.get("NCCL_P2P_DISABLE", "0").strip() not in {"", "0"}


def foreign_processes(mine: Facts, group: tuple[Facts, ...]) -> str:
    """The processes on this rank's GPU that belong to no rank of the group, in words; else "".

    Within a PID namespace of its own this process does not know itself among NVML's, and cannot
    tell who is foreign: then "" as well. Never raises.
    """
    if not mine.gpu_uuid:
        return ""
    errors: list[str] = []
    nobody: tuple[nvml.Process, ...] = ()
    running = _attempt(errors, "NVML", lambda: nvml.processes(mine.gpu_uuid, mine.bus_id), nobody)
    ours = {facts.pid for facts in group}
    if mine.pid not in {process.pid for process in running}:
        return ""
    return ", ".join(str(process) for process in running if process.pid not in ours)


@dataclass(frozen=True)
class _Module:
    """The state of the native module, and the two CUDA versions that it knows."""

    status: Module = "broken"
    detail: str = ""
    build_cuda: int = 0
    driver_cuda: int = 0


@dataclass(frozen=True)
class _Gpu:
    """The CUDA runtime's answers about one device."""

    uuid: str = ""
    name: str = ""
    bus_id: str = ""
    capability: int = 0
    sm_count: int = 0
    has_kernel: bool = False


def _attempt(errors: list[str], what: str, read: Callable[[], T], otherwise: T) -> T:
    """`read()`, or `otherwise` and a line in `errors`: the one place where any error ends."""
    try:
        return read()
    except Exception as error:
        errors.append(f"{what}: {error or type(error).__name__}")
        return otherwise


def _module() -> _Module:
    state = _native.state()
    if state.status != "cuda":
        detail = state.detail if state.status != "host" else ""
        return _Module(status=state.status, detail=detail)
    native = _native.load()
    return _Module(
        status="cuda",
        build_cuda=native.cuda_version,
        driver_cuda=native.driver_cuda_version(),
    )


def _gpu(device: torch.device) -> _Gpu:
    index = cast("int | None", device.index)  # None for plain "cuda", whatever torch's stub says
    if index is None:
        import torch

        index = torch.cuda.current_device()
    info = _native.load().device_info(index)
    return _Gpu(
        uuid=info.uuid,
        name=info.name,
        bus_id=info.pci_bus_id,
        capability=info.capability,
        sm_count=info.sm_count,
        has_kernel=info.has_kernel,
    )


def _boot_id() -> str:
    """The kernel's id of this boot; where a sandbox hides it, the host's name and its start."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        lines = (_PROC / "stat").read_text(encoding="ascii").splitlines()
        started = next(line.split()[1] for line in lines if line.startswith("btime "))
        return f"{platform.node()}@{started}"[:64]


def _pid_namespace() -> int:
    return (_PROC / "self/ns/pid").stat().st_ino


def _is_wsl() -> bool:
    try:
        return "microsoft" in (_PROC / "version").read_text(encoding="utf-8").lower()
    except (OSError, ValueError):
        return False
