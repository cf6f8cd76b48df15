# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_vllm_contract.py run: vLLM's own CUDA communicator, on the CPU over gloo.

Its class is real; what it would build on a GPU (NCCL, symmetric memory) switches itself off here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from pyallreduce import validate
from pyallreduce.integrations import vllm as plugin
from pyallreduce.integrations.adapter import SlotAdapter
from pyallreduce.reasons import Code, Reason
from pyallreduce.worker import Context

DEVICES = "vllm.distributed.device_communicators"


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
    """vLLM's CudaCommunicator after `register()`, as on a CUDA platform."""
    platform = type(importlib.import_module("vllm.platforms").current_platform)
    with (
        mock.patch.object(platform, "is_cuda", return_value=True),
        mock.patch.object(platform, "is_cpu", return_value=False),
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
        with lines() as told:
            state.set_custom_all_reduce(False)
            off = build(cls).ca_comm
            state.set_custom_all_reduce(True)
    return {"other": other is None, "off": off is None, "told": told}


def vetoed(context: Context, code: Code) -> dict[str, Any]:
    """One rank finds the native path unfit; NCCL is built next."""
    seen: list[str | None] = []
    cls = registered()
    nccl = importlib.import_module(f"{DEVICES}.pynccl").PyNcclCommunicator
    state = importlib.import_module("vllm.distributed.parallel_state")
    start = nccl.__init__

    def spy(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(os.environ.get("NCCL_P2P_DISABLE"))
        start(self, *args, **kwargs)

    found = Reason(code, "rank 1 to rank 0") if context.rank == 1 else Reason(Code.OK)
    with (
        mock.patch.object(validate, "edges", return_value=found),
        mock.patch.object(nccl, "__init__", spy),
        mock.patch.dict(os.environ),
        lines() as told,
    ):
        communicator = build(cls)
    y = communicator.all_reduce(torch.ones(5))
    return {
        "told": told,
        "slot": communicator.ca_comm,
        "nccl": seen,
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
        "vetoed": {c: vetoed(context, Code(c)) for c in ("STAGE_FAILED", "P2P_WRITE_LOST")},
    }
