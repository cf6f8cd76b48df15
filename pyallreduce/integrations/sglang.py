# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's general plugin: its groups with a custom all-reduce use pyallreduce.

SGLang asks one function which class to build for a group's custom all-reduce, and hooks are its own
way to change that answer. Ours gives a factory, whose product stands in the slot `ca_comm`; after a
veto the factory gives None, and SGLang goes on with NCCL.

SGLang takes any other error of a factory for a veto of this one rank, whose peers would then wait
for it: where no fallback is to be had, the process ends.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyallreduce.integrations.adapter import (
    SlotAdapter,
    check_all,
    check_behind_the_gpu,
    open_slot,
    settle_all,
    start_step,
    tell,
)
from pyallreduce.integrations.contract import SGLANG, problems

__all__ = ["logger", "register"]

logger = logging.getLogger("sglang.pyallreduce")

_DISPATCH = (
    "sglang.srt.distributed.device_communicators.custom_all_reduce.dispatch_custom_allreduce"
)
_GROUP = "sglang.srt.distributed.parallel_state.GroupCoordinator"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"


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
    hooks: Any = importlib.import_module("sglang.srt.plugins.hook_registry")
    add, kind = hooks.HookRegistry.register, hooks.HookType
    add(_DISPATCH, _dispatch, kind.AROUND)
    add(f"{_GROUP}.destroy", _close, kind.BEFORE)
    add(f"{_SCHEDULER}.run_batch", _start, kind.BEFORE)
    add(f"{_SCHEDULER}.process_batch_result", _check, kind.BEFORE)


def _dispatch(_original: Callable[..., Any], *_args: Any, **_kwargs: Any) -> Callable[..., Any]:
    return _build


def _build(group: Any, device: Any) -> SlotAdapter | None:
    """What SGLang puts into the slot of a group.

    Raises:
        SystemExit: no fallback is to be had: native was demanded, a setting is wrong, a rank did
            not come, or something failed that nobody foresaw.
    """
    import torch.distributed as dist

    try:
        # The control plane's group carries no tensor that we decline: SGLang asks another backend.
        opened = open_slot(group, device, fallback_group=group)
    except Exception as error:  # SGLang takes one for this rank's veto, and the others would wait
        message = f"pyallreduce ends this process: {type(error).__name__}: {error}"
        logger.error("%s", message)
        raise SystemExit(message) from error
    if dist.get_rank(group) == 0:
        tell(logger, ",".join(map(str, dist.get_process_group_ranks(group))), opened, "NCCL")
    return opened if isinstance(opened, SlotAdapter) else None


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
