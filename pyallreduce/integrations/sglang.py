# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's general plugin: its groups with a custom all-reduce use pyallreduce.

SGLang asks one function which class to build for a group's custom all-reduce, and hooks are its own
way to change that answer. Ours gives a factory, whose product stands in the slot `ca_comm`; after a
veto the factory gives None, and SGLang goes on with NCCL.

A group builds NCCL first, and makes an all-reduce with it: on broken peer-to-peer that is what
would hang. So a group that is to have a custom all-reduce opens ours before that, and NCCL is told.

Only processes with a scheduler are served, since it is there that a batch is checked, and where
tensors are a GPU's: on the CPU SGLang does not ask the slot. Others, such as those of an encoder
alone, of which some load no plugin, stay as they are.

SGLang takes any other error of a factory for a veto of this one rank, whose peers would then wait
for it: where no fallback is to be had, the process ends.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packaging.version import Version

from pyallreduce.integrations import sglang_bypass
from pyallreduce.integrations.adapter import (
    SlotAdapter,
    check_all,
    check_behind_the_gpu,
    is_broken,
    open_slot,
    settle_all,
    start_step,
    tell,
    tell_nccl,
)
from pyallreduce.integrations.contract import SGLANG, problems
from pyallreduce.reasons import Reason

__all__ = ["logger", "register"]

logger = logging.getLogger("sglang.pyallreduce")

_DISPATCH = (
    "sglang.srt.distributed.device_communicators.custom_all_reduce.dispatch_custom_allreduce"
)
_NCCL = "sglang.srt.distributed.device_communicators.pynccl.PyNcclCommunicator"
_GROUP = "sglang.srt.distributed.parallel_state.GroupCoordinator"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"

# The server's arguments, once this process builds its scheduler.
_serving: list[Any] = []
_release: list[int] = []  # SGLang's
# The groups being built, from the outermost: whether each is to have a custom all-reduce.
_building: list[bool] = []
# What was opened for a group before its NCCL was built.
_opened: dict[Any, SlotAdapter | Reason] = {}


def register() -> None:
    """Make SGLang's groups use pyallreduce. Never raises; SGLang loads a plugin once a process."""
    try:
        _install()
    except Exception:
        # A missing gain must not end the engine.
        logger.warning("pyallreduce could not be installed; SGLang goes on", exc_info=True)


def _install() -> None:
    if importlib.import_module("torch").version.hip is not None:
        logger.debug("pyallreduce serves CUDA; on ROCm SGLang stays as it is")
        return
    sglang: Any = importlib.import_module("sglang")
    version = str(importlib.import_module("sglang.version").__version__)
    why_not = problems(SGLANG, version, Path(sglang.__file__).parent)
    if why_not:
        logger.warning("pyallreduce leaves SGLang as it is: %s", "; ".join(why_not))
        return
    _release[:] = Version(version).release
    hooks: Any = importlib.import_module("sglang.srt.plugins.hook_registry")
    add, kind = hooks.HookRegistry.register, hooks.HookType
    add(f"{_SCHEDULER}.__init__", _schedule, kind.BEFORE)
    add(f"{_GROUP}.__init__", _group, kind.AROUND)
    add(f"{_NCCL}.__init__", _nccl, kind.AROUND)
    add(_DISPATCH, _dispatch, kind.AROUND)
    add(f"{_GROUP}.destroy", _close, kind.BEFORE)
    add(f"{_SCHEDULER}.run_batch", _start, kind.BEFORE)
    add(f"{_SCHEDULER}.process_batch_result", _check, kind.BEFORE)


def _schedule(_scheduler: Any, *args: Any, **kwargs: Any) -> None:
    _serving[:] = [kwargs.get("server_args", args[0] if args else None)]


def _on_gpu(device: Any) -> bool:
    return isinstance(device, int) or str(device).startswith("cuda")


def _group(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """A group is built. What was opened for it and not taken is closed."""
    if not _serving:
        original(*args, **kwargs)
        return
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    _building.append(bool(given.get("use_custom_allreduce")))
    try:
        original(*args, **kwargs)
    finally:
        _building.pop()
        if not _building:
            for left in _opened.values():
                if isinstance(left, SlotAdapter):
                    left.close()
            _opened.clear()


def _nccl(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """NCCL is built: of a group that is to have a custom all-reduce, behind our checks."""
    import torch.distributed as dist

    given = inspect.signature(original).bind(*args, **kwargs).arguments
    group = given["group"]
    wanted = bool(_building) and _building[-1] and _on_gpu(given["device"])
    if wanted and isinstance(group, dist.ProcessGroup) and dist.get_world_size(group) > 1:
        _opened[group] = tell_nccl(_open(group, given["device"]))
    original(*args, **kwargs)


def _dispatch(original: Callable[..., Any], group: Any, device: Any) -> Callable[..., Any]:
    if _serving and _on_gpu(device):
        return _build
    factory: Callable[..., Any] = original(group=group, device=device)
    return factory


def _build(group: Any, device: Any) -> SlotAdapter | None:
    """What SGLang puts into the slot of a group.

    Raises:
        SystemExit: as `_open` does.
    """
    import torch.distributed as dist

    # A group without NCCL of its own comes here unchecked.
    opened = _opened.pop(group) if group in _opened else tell_nccl(_open(group, device))
    if dist.get_rank(group) == 0:
        nccl = "NCCL with NCCL_P2P_DISABLE=1" if is_broken(opened) else "NCCL"
        name = ",".join(map(str, dist.get_process_group_ranks(group)))
        tell(logger, name, opened, *sglang_bypass.standing(_serving[0], tuple(_release)), nccl)
        for way in sglang_bypass.found(_serving[0], tuple(_release)):
            logger.warning("Group '%s': %s comes first for what it takes", name, way)
    return opened if isinstance(opened, SlotAdapter) else None


def _open(group: Any, device: Any) -> SlotAdapter | Reason:
    """The adapter for the slot, or why there is none.

    Raises:
        SystemExit: no fallback is to be had: native was demanded, a setting is wrong, a rank did
            not come, or something failed that nobody foresaw.
    """
    try:
        # The control plane's group carries no tensor that we decline: SGLang asks another backend.
        return open_slot(group, device, fallback_group=group)
    except Exception as error:  # SGLang takes one for this rank's veto, and the others would wait
        message = f"pyallreduce ends this process: {type(error).__name__}: {error}"
        logger.error("%s", message)
        raise SystemExit(message) from error


def _start(*_args: Any, **_kwargs: Any) -> None:
    """A batch starts, on every rank."""
    start_step()


def _check(_scheduler: Any, _batch: Any, result: Any, *_args: Any, **_kwargs: Any) -> None:
    """A batch's tokens are about to be read: first wait for them, then ask every rank's record."""
    done = getattr(result, "copy_done", None)
    if done is None:
        check_behind_the_gpu()
    else:
        done.synchronize()
        check_all()
    settle_all()


def _close(coordinator: Any, *_args: Any, **_kwargs: Any) -> None:
    slot = getattr(coordinator, "ca_comm", None)
    if isinstance(slot, SlotAdapter):
        slot.close()
