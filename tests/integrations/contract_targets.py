# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_vllm_contract.py run: vLLM's own CUDA communicator, on the CPU over gloo.

Its class is real; what it would build on a GPU (NCCL, symmetric memory) switches itself off here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from pyallreduce import validate
from pyallreduce.integrations import adapter
from pyallreduce.integrations import vllm as plugin
from pyallreduce.integrations.adapter import SlotAdapter
from pyallreduce.reasons import Code, Reason
from pyallreduce.worker import Context

DEVICES = "vllm.distributed.device_communicators"
VETOES = ("FORCED_NCCL", "STAGE_FAILED", "P2P_WRITE_LOST", "NCCL_P2P_DISABLED")


@contextlib.contextmanager
def lines() -> Iterator[list[str]]:
    """What the plugin logs within: "LEVEL text"."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda r: told.append(f"{r.levelname} {r.getMessage()}")  # type: ignore[method-assign]
    plugin.logger.addHandler(handler)
    plugin.logger.setLevel(logging.INFO)
    try:
        yield told
    finally:
        plugin.logger.removeHandler(handler)


def registered() -> Any:
    """vLLM's CudaCommunicator after `register()`, as on a CUDA platform; no GPU may be touched."""
    platform = type(importlib.import_module("vllm.platforms").current_platform)
    with (
        mock.patch.object(platform, "is_cuda", return_value=True),
        mock.patch.object(platform, "is_cpu", return_value=False),
        mock.patch.object(torch.cuda, "_lazy_init", side_effect=AssertionError("CUDA was started")),
    ):
        plugin.register()
        plugin.register()
    return importlib.import_module(f"{DEVICES}.cuda_communicator").CudaCommunicator


def build(cls: Any, name: str = "tp:0") -> Any:
    group = dist.group.WORLD
    device = torch.device("cpu")
    return cls(cpu_group=group, device=device, device_group=group, unique_name=name)


def in_the_slot(context: Context) -> dict[str, Any]:
    with lines() as told:
        cls = registered()
        stock = importlib.import_module(f"{DEVICES}.custom_all_reduce").CustomAllreduce
        communicator = build(cls)
    slot = communicator.ca_comm
    x = torch.full((7, 33), float(context.rank + 1), dtype=torch.bfloat16)
    with torch.inference_mode():
        y = communicator.all_reduce(x)
        calls = slot.communicator.stats().calls
        few = communicator.all_reduce(torch.tensor([1, 2, context.rank]))
        with slot.capture():
            z = communicator.all_reduce(x)
        again = slot.all_reduce(x, registered=False)
    found = {
        "told": told,
        "ours": isinstance(slot, SlotAdapter) and not slot.disabled,
        "sum": bool((y == 3).all()) and bool((z == 3).all()) and bool((again == 3).all()),
        "input": bool((x == context.rank + 1).all()) and y.data_ptr() != x.data_ptr(),
        "calls": [calls, slot.communicator.stats().calls],
        "falls through": few.tolist(),
        "declines": [slot.custom_all_gather(x), slot.custom_reduce_scatter(x)],
        "multicast": slot.mnnvl_lamport_ag_multicast_ptr,
        "restored": importlib.import_module(f"{DEVICES}.custom_all_reduce").CustomAllreduce
        is stock,
    }
    communicator.destroy()
    communicator.destroy()
    found["destroyed"] = [communicator.ca_comm, slot.disabled, slot.should_custom_ar(x)]
    return found


def not_ours() -> dict[str, Any]:
    """Groups and settings that the plugin must leave alone."""
    cls = registered()
    state = importlib.import_module("vllm.distributed.parallel_state")
    with mock.patch.object(plugin, "open_slot", side_effect=AssertionError("a slot was opened")):
        other = build(cls, "dp:0").ca_comm
        state.set_custom_all_reduce(False)
        with lines() as told:
            off = build(cls).ca_comm
        demanded = {"PYALLREDUCE_BACKEND": "native", "PYALLREDUCE_VLLM_EXCLUSIVE": "1"}
        with mock.patch.dict(os.environ, demanded), lines() as void:
            build(cls)
        state.set_custom_all_reduce(True)
        parallel = types.SimpleNamespace(prefill_context_parallel_size=2)
        config = types.SimpleNamespace(parallel_config=parallel)
        with mock.patch.object(plugin, "_vllm_config", return_value=config), lines() as context:
            build(cls)
    return {
        "other": other is None,
        "off": off is None,
        "told": told,
        "void": void,
        "context parallel": context,
    }


class Symmetric:
    """In place of vLLM's symmetric memory, which a CPU has not: takes everything."""

    disabled = False

    def __init__(self, *_: object, **__: object) -> None:
        self.calls = 0

    def should_use_symm_mem(self, _x: torch.Tensor) -> bool:
        return True

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y = x.clone()
        dist.all_reduce(y)
        return y


@contextlib.contextmanager
def symmetric_memory() -> Iterator[None]:
    """Within, vLLM builds `Symmetric`, in a process that remembers vLLM's variables."""
    devices = importlib.import_module(f"{DEVICES}.cuda_communicator")
    symmetric = importlib.import_module(f"{DEVICES}.symm_mem")
    envs: Any = importlib.import_module("vllm.envs")
    cuda = mock.Mock(wraps=devices.current_platform)
    cuda.is_cuda = lambda: True
    with (
        mock.patch.object(devices, "current_platform", cuda),
        mock.patch.object(symmetric, "SymmMemCommunicator", Symmetric),
        mock.patch.object(envs, "__getattr__", functools.cache(envs.__getattr__)),
    ):
        assert envs.VLLM_ALLREDUCE_USE_SYMM_MEM
        yield


def displaced() -> dict[str, Any]:
    """vLLM's constructor does not put ours into its slot."""
    cls = registered()
    opened: list[Any] = []
    open_slot = plugin.open_slot

    def spy(*args: Any) -> Any:
        opened.append(open_slot(*args))
        return opened[-1]

    with (
        mock.patch.object(plugin, "_in_the_slot", return_value=contextlib.nullcontext()),
        mock.patch.object(plugin, "open_slot", spy),
        lines() as told,
    ):
        communicator = build(cls)
    y = communicator.all_reduce(torch.ones(5))
    return {
        "closed": [isinstance(slot, SlotAdapter) and slot.disabled for slot in opened],
        "slot": type(communicator.ca_comm).__name__,
        "sum": y.tolist(),
        "told": told,
    }


def vetoed(context: Context, code: Code) -> dict[str, Any]:
    """One rank finds the native path unfit; NCCL is built next. Then a second group, as it would be
    vetoed on GPUs where the first has set NCCL_P2P_DISABLE."""
    seen: list[str | None] = []
    cls = registered()
    nccl = importlib.import_module(f"{DEVICES}.pynccl").PyNcclCommunicator
    state = importlib.import_module("vllm.distributed.parallel_state")
    start = nccl.__init__
    adapter._first_broken.clear()

    def spy(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(os.environ.get("NCCL_P2P_DISABLE"))
        start(self, *args, **kwargs)

    found = Reason(code, "rank 1 to rank 0") if context.rank == 1 else Reason(Code.OK)
    with (
        mock.patch.object(validate, "edges", return_value=found),
        mock.patch.object(nccl, "__init__", spy),
        mock.patch.dict(os.environ),
        symmetric_memory(),
    ):
        with lines() as told:
            communicator = build(cls)
        second = Reason(Code.NCCL_P2P_DISABLED, "ranks 0 and 1")
        with mock.patch.object(plugin, "open_slot", return_value=second), lines() as again:
            build(cls)
        adapter._first_broken.clear()
        users = {"NCCL_P2P_DISABLE": "1"}
        chosen = Reason(Code.FORCED_NCCL)
        with (
            mock.patch.object(plugin, "open_slot", return_value=chosen),
            mock.patch.dict(os.environ, users),
            lines() as both,
        ):
            build(cls)
    y = communicator.all_reduce(torch.ones(5))
    symmetric = communicator.symm_mem_comm
    return {
        "told": told,
        "again": again,
        "forced and disabled": both,
        "slot": communicator.ca_comm,
        "symmetric": None if symmetric is None else symmetric.calls,
        "nccl": seen[0],
        "sum": y.tolist(),
        "flag": state._ENABLE_CUSTOM_ALL_REDUCE,
    }


def unknown_release(**difference: Any) -> dict[str, Any]:
    """Another version, or another contract than the source keeps."""
    vllm = importlib.import_module("vllm")
    module = importlib.import_module(f"{DEVICES}.cuda_communicator")
    before = module.CudaCommunicator.__init__
    version = difference.get("version", vllm.__version__)
    contract = plugin.VLLM_CUDA
    if "mentions" in difference:
        wanted = {**contract.mentions, **difference["mentions"]}
        contract = dataclasses.replace(contract, mentions=wanted)
    with (
        mock.patch.object(vllm, "__version__", version),
        mock.patch.object(plugin, "VLLM_CUDA", contract),
        lines() as told,
    ):
        cls = registered()
    return {"told": told, "untouched": cls.__init__ is before}


def everything(context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    """All of the above in one process, since importing vLLM takes longer than the rest."""
    importlib.import_module("vllm.logger")  # sets up its loggers, and forgets our handler
    place = "distributed/parallel_state.py:GroupCoordinator.graph_capture"
    return {
        "unknown": {
            **{v: unknown_release(version=v) for v in ("0.34.0", "0.19.1", "dev")},
            "contract": unknown_release(mentions={place: ("a_name_of_tomorrow",)}),
        },
        "slot": in_the_slot(context),
        "not ours": not_ours(),
        "displaced": displaced(),
        "vetoed": {c: vetoed(context, Code(c)) for c in VETOES},
    }
