# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_sglang.py run: our hooks on stand-ins for what they touch of SGLang."""

from __future__ import annotations

import logging
import os
import sys
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from pyallreduce import validate
from pyallreduce.errors import ExchangeTimeout
from pyallreduce.integrations import sglang as plugin
from pyallreduce.integrations.adapter import SlotAdapter
from pyallreduce.reasons import Code, Reason
from pyallreduce.worker import Context


class Registry:
    """As SGLang's: keeps what is registered."""

    hooks: dict[str, tuple[Any, str]] = {}  # noqa: RUF012 - it is the registry

    @classmethod
    def register(cls, target: str, hook: Any, hook_type: str) -> None:
        cls.hooks[target] = (hook, hook_type)


def module(name: str, **content: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(content)
    return made


def registered(version: str) -> dict[str, tuple[Any, str]]:
    """The hooks after `register()`, by target."""
    kinds = types.SimpleNamespace(AROUND="around", BEFORE="before")
    stand_ins = {
        "sglang": module("sglang", __file__="/nowhere/sglang/__init__.py"),
        "sglang.version": module("sglang.version", __version__=version),
        "sglang.srt.plugins.hook_registry": module("hooks", HookRegistry=Registry, HookType=kinds),
    }
    known = [] if version == "0.5.23" else ["another release"]
    with (
        mock.patch.dict(sys.modules, stand_ins),
        mock.patch.object(plugin, "problems", return_value=known),
    ):
        Registry.hooks = {}
        plugin.register()
    # Ranks on the CPU stand for GPUs, and a scheduler is built.
    plugin._on_gpu = lambda _device: True  # type: ignore[assignment]
    if scheduler := Registry.hooks.get(f"{plugin._SCHEDULER}.__init__"):
        scheduler[0](None, types.SimpleNamespace(enable_mscclpp=True), None, gpu_id=0)
    return Registry.hooks


def lifetime(context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    """Build, call, check and close, as SGLang's coordinator and scheduler would."""
    hooks = {name.rpartition(".")[2]: hook for name, hook in registered("0.5.23").items()}
    around, how = hooks["dispatch_custom_allreduce"]
    factory = around(None, group=dist.group.WORLD, device=torch.device("cpu"))
    slot = factory(group=dist.group.WORLD, device=torch.device("cpu"))
    x = torch.full((3, 5), float(context.rank + 1))
    hooks["run_batch"][0](None, None)
    with slot.capture():
        y = slot.custom_all_reduce(x)
    waited: list[bool] = []
    event = types.SimpleNamespace(synchronize=lambda: waited.append(True))
    hooks["process_batch_result"][0](None, None, types.SimpleNamespace(copy_done=event))
    hooks["destroy"][0](types.SimpleNamespace(ca_comm=slot))
    return {
        "how": [how, *(hooks[n][1] for n in ("run_batch", "process_batch_result", "destroy"))],
        "ours": isinstance(slot, SlotAdapter),
        "optional": [hasattr(slot, name) for name in ("reduce_scatter", "should_custom_ag")],
        "takes": [bool((y == 3).all()), bool((x == context.rank + 1).all())],
        "waited": waited,
        "closed": slot.disabled,
    }


class Nccl:
    """In place of SGLang's PyNcclCommunicator, which makes an all-reduce when it is built."""

    told: list[str | None] = []  # noqa: RUF012 - what NCCL finds in the environment, by group

    def __init__(self, group: Any, device: Any, library_path: str | None = None) -> None:
        del group, device, library_path
        self.told.append(os.environ.get("NCCL_P2P_DISABLE"))


class Coordinator:
    """What SGLang's does of a group that is of interest here, in its order."""

    def __init__(
        self,
        ranks: list[int],
        use_custom_allreduce: bool,
        use_pynccl: bool = True,
        *,
        fails: bool = False,
    ) -> None:
        del ranks
        self.ca_comm = None
        if use_pynccl:
            Nccl(group=dist.group.WORLD, device=torch.device("cpu"))
        if fails:
            message = "out of memory"
            raise MemoryError(message)
        if use_custom_allreduce:
            factory = self.dispatch(group=dist.group.WORLD, device=torch.device("cpu"))
            self.ca_comm = factory(group=dist.group.WORLD, device=torch.device("cpu"))

    dispatch: Any = None


def hooked() -> list[str]:
    """Hooks around the stand-ins above, as SGLang's registry puts them there; what is logged."""
    hooks = registered("0.5.23")

    def around(owner: type, name: str, target: str) -> None:
        original, hook = getattr(owner, name), hooks[target][0]
        setattr(owner, name, lambda *args, **kwargs: hook(original, *args, **kwargs))

    around(Nccl, "__init__", f"{plugin._NCCL}.__init__")
    around(Coordinator, "__init__", f"{plugin._GROUP}.__init__")
    ask = hooks[plugin._DISPATCH][0]
    Coordinator.dispatch = staticmethod(lambda **given: ask(None, **given))
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda r: lines.append(f"{r.levelname} {r.getMessage()}")  # type: ignore[method-assign]
    plugin.logger.addHandler(handler)
    plugin.logger.setLevel(logging.INFO)
    return lines


def before_nccl(context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    """Groups that are sound, broken, without a custom all-reduce, and that fail on their way."""
    lost = Reason(Code.P2P_WRITE_LOST, "rank 1 to rank 0") if context.rank else Reason(Code.OK)
    lines, found = hooked(), {}
    opened: list[SlotAdapter] = []
    remember = mock.patch.object(
        plugin,
        "_open",
        side_effect=lambda *a, sound=plugin._open: opened.append(sound(*a)) or opened[-1],
    )
    with remember:
        sound = Coordinator([0, 1], use_custom_allreduce=True)
        x = torch.ones(8)
        found["sound"] = [
            sound.ca_comm is opened[0],
            bool((sound.ca_comm.all_reduce(x) == 2).all()),
        ]
        found["without"] = [Coordinator([0, 1], use_custom_allreduce=False).ca_comm, len(opened)]
        try:
            Coordinator([0, 1], use_custom_allreduce=True, fails=True)
        except MemoryError:
            found["failed"] = [len(opened), opened[1].disabled]
        sound.ca_comm.close()
        with mock.patch.object(validate, "edges", return_value=lost):
            broken = Coordinator([0, 1], use_custom_allreduce=True).ca_comm
        ours = Reason(Code.NCCL_P2P_DISABLED)  # as the variable that has been set is found on GPUs
        with mock.patch.object(plugin, "open_slot", return_value=ours):
            again = Coordinator([0, 1], True).ca_comm
            without = Coordinator([0, 1], use_custom_allreduce=True, use_pynccl=False).ca_comm
    return {**found, "broken": [broken, again, without], "nccl": Nccl.told, "lines": lines}


def vetoed(context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    lost = Reason(Code.P2P_WRITE_LOST, "rank 1 to rank 0") if context.rank else Reason(Code.OK)
    around = registered("0.5.23")[plugin._DISPATCH][0]
    with mock.patch.object(validate, "edges", return_value=lost):
        built = around(None, None, None)(group=dist.group.WORLD, device=torch.device("cpu"))
    unknown = len(registered("0.6.0"))
    with mock.patch.object(torch.version, "hip", "6.4"):
        return {"built": built, "unknown": unknown, "ROCm": len(registered("0.5.23"))}


def outcome(factory: Callable[..., Any]) -> str:
    """What SGLang makes of a factory's call: it takes every Exception for a veto of this rank."""
    try:
        factory(group=dist.group.WORLD, device=torch.device("cpu"))
    except SystemExit as end:
        return str(end)
    except Exception as error:
        return f"swallowed: {error}"
    return "built"


def refused(context: Context, _options: dict[str, Any]) -> dict[str, str]:
    """No fallback is to be had, for each of three reasons."""
    lost = Reason(Code.P2P_WRITE_LOST, "rank 1 to rank 0") if context.rank else Reason(Code.OK)
    factory = registered("0.5.23")[plugin._DISPATCH][0](None, None, None)
    found = {}
    with (
        mock.patch.object(validate, "edges", return_value=lost),
        mock.patch.dict(os.environ, PYALLREDUCE_BACKEND="native"),
    ):
        found["native"] = outcome(factory)
    with mock.patch.dict(os.environ, PYALLREDUCE_ALGO="three_shot"):
        found["setting"] = outcome(factory)
    with mock.patch.object(plugin, "open_slot", side_effect=ExchangeTimeout("rank 1 is away")):
        found["absent"] = outcome(factory)
    with mock.patch.object(plugin, "open_slot", side_effect=MemoryError("of the host")):
        found["unforeseen"] = outcome(factory)
    return found


def left_alone(_context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    """A process without a scheduler, whose peers may have no plugin; and tensors of the CPU."""
    sound = plugin._on_gpu
    hooked()
    stock = mock.Mock(return_value=mock.Mock(return_value="SGLang's own"))
    ask = plugin._dispatch
    Coordinator.dispatch = staticmethod(lambda **given: ask(stock, **given))
    found = {}
    with mock.patch.object(plugin, "open_slot", side_effect=AssertionError("opened")):
        for name, serving, on_gpu in (("encoder", [], plugin._on_gpu), ("CPU", [None], sound)):
            plugin._serving[:] = serving
            plugin._on_gpu = on_gpu
            found[name] = Coordinator([0, 1], use_custom_allreduce=True).ca_comm
    return found
