# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Whether an engine's release is one that we know how to serve, read from its source text.

The text is parsed, never imported: the answer costs no GPU, and `pyallreduce info` can give it for
an engine that does not even start here. It depends on the files alone.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

__all__ = ["SGLANG", "VLLM_CPU", "VLLM_CUDA", "Contract", "problems"]


@dataclass(frozen=True)
class Contract:
    """What must be true of an engine's source.

    `first` and `last` are the releases served, as (major, minor), both included. `mentions` maps
    "file.py:Class.function" ("file.py:Class" for a class, "file.py:" for the whole file) to names
    that must occur there: a parameter, a variable, an attribute or an import.
    """

    engine: str
    first: tuple[int, int]
    last: tuple[int, int]
    mentions: Mapping[str, tuple[str, ...]]

    @property
    def versions(self) -> str:
        """The releases served, for people."""
        return f"{self.first[0]}.{self.first[1]} to {self.last[0]}.{self.last[1]}"


_STATE = "distributed/parallel_state.py"
_CUDA = "distributed/device_communicators/cuda_communicator.py:CudaCommunicator"
_CPU = "distributed/device_communicators/cpu_communicator.py:CpuCommunicator"
_WORKER = "v1/worker/gpu_worker.py:Worker"
# What vllm_steps.py wraps, and by what vllm_errors.py tells which worker is heard.
_STEPS: Mapping[str, tuple[str, ...]] = {
    f"{_WORKER}.execute_model": ("scheduler_output",),
    f"{_WORKER}.sample_tokens": ("grammar_output",),
    f"{_WORKER}.determine_available_memory": (),
    f"{_WORKER}.compile_or_warm_up_model": (),
    f"{_WORKER}.execute_dummy_batch": (),
    "v1/outputs.py:AsyncModelRunnerOutput.get_output": (),
    "v1/executor/multiproc_executor.py:WorkerProc.enqueue_output": ("output",),
    "v1/executor/multiproc_executor.py:MultiprocExecutor._get_output_rank": (
        "world_size",
        "tensor_parallel_size",
        "prefill_context_parallel_size",
    ),
    f"{_STATE}:GroupCoordinator.send_tensor_dict": (),
    f"{_STATE}:GroupCoordinator.isend_tensor_dict": (),
    f"{_STATE}:GroupCoordinator.broadcast_tensor_dict": (),
}
_CONFIG = {"config/__init__.py:": ("get_current_vllm_config_or_none",)}
_PARAMETERS = ("cpu_group", "device", "device_group", "unique_name")

VLLM_CUDA = Contract(
    engine="vLLM",
    first=(0, 20),
    last=(0, 33),
    mentions={
        f"{_STATE}:": ("_ENABLE_CUSTOM_ALL_REDUCE",),
        f"{_STATE}:GroupCoordinator.graph_capture": ("ca_comm", "capture"),
        f"{_CUDA}.__init__": (
            *_PARAMETERS,
            "_ENABLE_CUSTOM_ALL_REDUCE",
            "CustomAllreduce",
            "ca_comm",
            "symm_mem_comm",
            "tcp_store_group",
        ),
        f"{_CUDA}.all_reduce": ("ca_comm", "disabled", "should_custom_ar", "custom_all_reduce"),
        f"{_CUDA}.destroy": ("ca_comm",),
        "distributed/device_communicators/custom_all_reduce.py:CustomAllreduce": (),
        **_CONFIG,
        **_STEPS,
    },
)
VLLM_CPU = Contract(
    engine="vLLM",
    first=(0, 20),
    last=(0, 33),
    mentions={
        f"{_STATE}:": ("_ENABLE_CUSTOM_ALL_REDUCE",),
        f"{_STATE}:all_reduce": ("_all_reduce_out_place",),
        f"{_CPU}.__init__": (*_PARAMETERS, "dist_module"),
        f"{_CPU}.all_reduce": ("dist_module",),
        "distributed/device_communicators/base_device_communicator.py:"
        "DeviceCommunicatorBase.destroy": (),
        **_CONFIG,
        **_STEPS,
    },
)
SGLANG = Contract(
    engine="SGLang",
    first=(0, 5),
    last=(0, 5),
    mentions={
        "srt/plugins/hook_registry.py:HookRegistry.register": ("target", "hook", "hook_type"),
        "srt/distributed/device_communicators/custom_all_reduce.py:dispatch_custom_allreduce": (
            "group",
            "device",
        ),
        "srt/distributed/parallel_state.py:GroupCoordinator.__init__": (
            "dispatch_custom_allreduce",
            "ca_comm",
            "use_custom_allreduce",
            "PyNcclCommunicator",
        ),
        "srt/distributed/device_communicators/pynccl.py:PyNcclCommunicator.__init__": (
            "group",
            "device",
        ),
        "srt/distributed/parallel_state.py:GroupCoordinator.graph_capture": ("ca_comm", "capture"),
        "srt/distributed/parallel_state.py:GroupCoordinator.all_reduce": ("ca_comm", "disabled"),
        # In `all_reduce`, or in what it asks, which has another name in each release.
        "srt/distributed/parallel_state.py:GroupCoordinator": (
            "should_custom_ar",
            "custom_all_reduce",
        ),
        "srt/distributed/parallel_state.py:GroupCoordinator.destroy": ("ca_comm",),
        "srt/managers/scheduler.py:Scheduler.__init__": ("server_args",),
        "srt/managers/scheduler.py:Scheduler.run_batch": ("batch",),
        "srt/managers/scheduler.py:Scheduler.process_batch_result": ("batch", "result"),
    },
)


def problems(contract: Contract, version: str, root: Path) -> list[str]:
    """Why this release is not served, one sentence each; empty if it is.

    Args:
        version: as the engine states it.
        root: the engine's package, the folder with its `__init__.py`.
    """
    found = _out_of_range(contract, version)
    if found:
        return [found]
    names: dict[str, dict[str, set[str]]] = {}
    missing = []
    for place, wanted in contract.mentions.items():
        file, _, inside = place.partition(":")
        if file not in names:
            names[file] = _names(root / file)
        if inside not in names[file]:
            missing.append(f"{file} has no {inside}" if inside else f"{file} can't be read")
            continue
        absent = [name for name in wanted if name not in names[file][inside]]
        if absent:
            missing.append(f"{place} does not mention {', '.join(absent)}")
    return missing


def _out_of_range(contract: Contract, version: str) -> str:
    try:
        release = Version(version).release
    except InvalidVersion:
        return f"its version {version!r} can't be read"
    if contract.first <= (*release, 0, 0)[:2] <= contract.last:
        return ""
    return f"{contract.engine} {version} is outside of the releases served, {contract.versions}"


def _names(file: Path) -> dict[str, set[str]]:
    """Each class and function of a file, and "" for all of it, with the names in it; empty on
    error."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return {}
    found = {"": _mentioned(tree)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _mentioned(node)
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    found[f"{node.name}.{item.name}"] = _mentioned(item)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = _mentioned(node)
    return found


def _mentioned(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names
