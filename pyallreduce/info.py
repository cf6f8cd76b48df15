# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What `pyallreduce info` shows: versions, GPUs, the decision, the slab's budget. Nothing here
raises.

The decision is `selector.decide` on facts probed for every GPU of this machine, by this one
process.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyallreduce import _native, tuned
from pyallreduce.config import VARIABLES, Config
from pyallreduce.launch import HOST_RANKS
from pyallreduce.reasons import Code, Reason
from pyallreduce.selector import Decision, decide
from pyallreduce.topology import Matrix, matrix, probe

__all__ = ["Budget", "Group", "Info", "gather", "gpu_count", "header"]

_PACKAGES = (
    *("pyallreduce", "torch", "vllm", "sglang", "sglang-kernel"),
    *("cupy-cuda12x", "cupy-cuda13x", "nvidia-ml-py"),
)
_WORLDS = (2, 3, 4, 8)
_NONE = ""


@dataclass(frozen=True)
class Group:
    """A group that could be started here, and what `decide` says about it."""

    name: str
    backend: str
    code: str
    cause: str
    detail: str
    remedy: str


@dataclass(frozen=True)
class Budget:
    """The slab of one rank: its regions (name, bytes) for a world size, and their sum in bytes."""

    world: int
    regions: tuple[tuple[str, int], ...]
    total: int


@dataclass(frozen=True)
class Info:
    """Everything that `info` shows."""

    versions: dict[str, str]
    native: dict[str, str]
    machine: dict[str, str]
    settings: dict[str, str]
    settings_error: str
    tuned: str
    matrix: Matrix
    groups: tuple[Group, ...]
    budgets: tuple[Budget, ...]
    engines: tuple[str, ...]
    errors: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def gather() -> Info:
    """Ask everything; what does not answer is told in `errors`."""
    errors: list[str] = []
    config, settings_error = _config()
    gpus = _ask(errors, "GPUs", gpu_count, 0)
    sizes = [("GPU", gpus), ("CPU", HOST_RANKS)] if gpus else [("CPU", HOST_RANKS)]
    groups = [
        _ask(errors, f"the decision, {kind}", partial(_group, kind, count, config), None)
        for kind, count in sizes
        if not settings_error  # which a start would raise before it decides
    ]
    return Info(
        versions=versions(),
        native=asdict(_native.state()),
        machine=_machine(),
        settings={v.name: os.environ[v.name] for v in VARIABLES if os.environ.get(v.name)},
        settings_error=settings_error,
        tuned=_ask(errors, "tuned tables", lambda: _tuned(config), ""),
        matrix=matrix(),
        groups=tuple(group for group in groups if group is not None),
        budgets=tuple(_ask(errors, "the slab's budget", lambda: _budgets(config), [])),
        engines=tuple(_ask(errors, "engines", _engines, [])),
        errors=tuple(errors),
    )


def _tuned(config: Config) -> str:
    path = tuned.path_of(config.tuning_file)
    if path is None:
        return "none are looked for; the shipped ones hold"
    return str(path) if path.exists() else f"{path} (not there: the shipped ones hold)"


def gpu_count() -> int:
    """CUDA devices that this process sees: asked of the module, or of torch where it has no
    CUDA."""
    if _native.state().status == "cuda":
        return int(_native.load().device_count())
    import torch

    return int(torch.cuda.device_count())


def versions() -> dict[str, str]:
    """Name to version of what takes part; what is not there is left out."""
    found = {name: _version(name) for name in _PACKAGES}
    found["python"] = platform.python_version()
    found["CUDA of the module"] = _quiet(lambda: _cuda(int(_native.load().cuda_version)))
    found["CUDA of torch"] = _quiet(_torch_cuda)
    found["CUDA of the driver"] = _quiet(lambda: _cuda(int(_native.load().driver_cuda_version())))
    found["driver"] = _quiet(_driver)
    found["NCCL"] = _quiet(_nccl)
    return {name: version for name, version in found.items() if version}


def header(command: str) -> dict[str, Any]:
    """The head of a result file: machine, GPUs, versions, commit and command."""
    gpus = matrix()
    return {
        "machine": _machine(),
        "gpu": [{"name": n, "uuid": u} for n, u in zip(gpus.names, gpus.uuids, strict=True)],
        "versions": versions(),
        "commit": os.environ.get("PYALLREDUCE_COMMIT") or _quiet(_commit) or "unknown",
        "command": command,
    }


def _group(kind: str, count: int, config: Config) -> Group:
    import torch

    devices = [torch.device("cuda", i) if kind == "GPU" else None for i in range(count)]
    facts = [probe(rank, count, device, config) for rank, device in enumerate(devices)]
    decision: Decision = decide(facts)
    ranks = f"{count} rank{'s' if count != 1 else ''}"
    name = f"{ranks}, one a GPU" if kind == "GPU" else f"{ranks} on the CPU"
    fallback = "nccl" if kind == "GPU" else "gloo"
    reason = decision.reason
    if decision.backend == "native":
        reason = _of_slab(count, config) or reason
    return Group(
        name=name,
        backend="native" if reason.code is Code.OK else fallback,
        code=reason.code.value,
        cause=reason.cause,
        detail=reason.detail,
        remedy=reason.remedy,
    )


def _of_slab(world: int, config: Config) -> Reason | None:
    """Why a slab of this size serves no group of so many ranks, if it does not."""
    try:
        _native.load().Layout(world, config.slab_bytes)
    except ValueError as error:
        return Reason(Code.SLAB_SIZE, str(error))
    return None


def _budgets(config: Config) -> list[Budget]:
    if _native.state().status not in ("cuda", "host"):
        return []
    layout_of = _native.load().Layout
    layouts = [(world, layout_of(world, config.slab_bytes)) for world in _WORLDS]
    return [
        Budget(
            world=world,
            regions=(
                ("in front of it, at most", int(layout.room_apart)),
                *((str(name), int(size)) for name, _, size, _ in layout.regions()),
            ),
            total=int(layout.room_apart + layout.bytes),
        )
        for world, layout in layouts
    ]


def _engines() -> list[str]:
    # By name and late: nothing else of the package depends on the integrations.
    status = importlib.import_module("pyallreduce.integrations.status")
    found: list[str] = status.lines()
    return found


def _config() -> tuple[Config, str]:
    try:
        return Config.from_env(), _NONE
    except ValueError as error:
        return Config(), str(error)


def _machine() -> dict[str, str]:
    return {
        "system": platform.platform(),
        "processor": _quiet(_processor) or platform.machine(),
        "cpus": str(len(os.sched_getaffinity(0))),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _NONE


def _cuda(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else _NONE


def _torch_cuda() -> str:
    import torch

    return torch.version.cuda or _NONE


def _nccl() -> str:
    import torch

    if torch.version.cuda is None:
        return _NONE
    nccl: Any = torch.cuda.nccl
    return ".".join(str(part) for part in nccl.version())


def _driver() -> str:
    import pynvml

    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _commit() -> str:
    """Of the checkout that the package lies in, with "+" where it has been changed since."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "csrc").is_dir():
        return _NONE

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short=12", "HEAD") + changed


def _quiet(read: Callable[[], str]) -> str:
    """`read()`, or nothing where the thing asked for is not there."""
    with contextlib.suppress(Exception):
        return read()
    return _NONE


def _ask(errors: list[str], what: str, read: Callable[[], Any], otherwise: Any) -> Any:
    """`read()`, or `otherwise` and a line in `errors`: info must answer on any machine."""
    try:
        return read()
    except Exception as error:
        errors.append(f"{what}: {error or type(error).__name__}")
        return otherwise
