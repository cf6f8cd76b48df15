# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's general plugin: its tensor-parallel group uses pyallreduce, with no flag.

vLLM calls `register` in each of its processes, before a worker builds its groups. It wraps vLLM's
own communicator class in place: the class stays the one that vLLM compares against and the object
the one that it asserts; only what its constructor puts into the slot `ca_comm` is ours. Start-up's
live checks run before that constructor, so that where peer-to-peer is broken NCCL is told in time.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyallreduce.integrations import vllm_bypass, vllm_steps
from pyallreduce.integrations.adapter import (
    SlotAdapter,
    is_broken,
    open_slot,
    tell,
    tell_nccl,
)
from pyallreduce.integrations.contract import VLLM_CPU, VLLM_CUDA, problems
from pyallreduce.reasons import Reason

__all__ = ["logger", "register"]

logger = logging.getLogger("vllm.pyallreduce")  # vLLM's logging shows what is below "vllm"

_DEVICES = "vllm.distributed.device_communicators"
_MARK = "_pyallreduce_wrapped"
_CACHE_KEY = "pyallreduce"
_UNCHECKED = (
    "vLLM's own all-reduces stay: with prefill context parallelism the worker that answers sees "
    "the records of its own group alone, and an aborted call of another could reach its tokens"
)


def register() -> None:
    """Make vLLM's tensor-parallel group use pyallreduce. Idempotent; never raises.

    Where this release of vLLM is not one that we know, vLLM stays as it is, with one warning.
    """
    try:
        _install()
    except Exception:
        # vLLM lets an error of a plugin end the engine; a missing gain must not.
        logger.warning("pyallreduce could not be installed; vLLM goes on without it", exc_info=True)


def _install() -> None:
    platform: Any = _module("vllm.platforms").current_platform
    if platform.is_cuda():
        contract, place, wrap = VLLM_CUDA, "cuda_communicator.CudaCommunicator", _wrap_cuda
    elif platform.is_cpu():
        contract, place, wrap = VLLM_CPU, "cpu_communicator.CpuCommunicator", _wrap_cpu
    else:
        logger.debug("pyallreduce serves CUDA and the CPU; this platform stays as it is")
        return
    vllm = _module("vllm")
    why_not = problems(contract, vllm.__version__, Path(vllm.__file__).parent)
    if why_not:
        _leave("; ".join(why_not))
        return
    module, name = place.split(".")
    communicator = getattr(_module(f"{_DEVICES}.{module}"), name)
    if not hasattr(communicator, _MARK):
        setattr(communicator, _MARK, True)  # also where it fails half-way: not twice
        wrap(communicator)


@functools.cache
def _leave(why: str) -> None:
    """Say it once a process, and once an engine: its other processes are children of the first."""
    level = logging.WARNING if multiprocessing.parent_process() is None else logging.DEBUG
    logger.log(level, "pyallreduce leaves vLLM as it is: %s", why)


# ---- the two communicators -----------------------------------------------------------------------


def _wrap_cuda(cls: Any) -> None:
    init = cls.__init__
    parameters = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        given = parameters.bind(self, *args, **kwargs).arguments
        if not _is_ours(given):
            init(self, *args, **kwargs)
            return
        name = given["unique_name"]
        if not _parallel_state()._ENABLE_CUSTOM_ALL_REDUCE:
            init(self, *args, **kwargs)
            if self.rank_in_group == 0:
                unheard = _void()
                level = logging.WARNING if unheard else logging.INFO
                text = "Group '%s': custom all-reduce is switched off: not ours either%s"
                logger.log(level, text, name, unheard)
            return
        if _answers_unchecked():
            init(self, *args, **kwargs)
            if self.rank_in_group == 0:
                logger.warning("Group '%s': %s", name, _UNCHECKED)
            return
        exclusive = vllm_bypass.exclusive()
        opened = tell_nccl(_open(given))
        broken = is_broken(opened)
        try:
            if broken or exclusive:
                vllm_bypass.switch_off(_vllm_config())
            with _in_the_slot(opened if isinstance(opened, SlotAdapter) else None):
                init(self, *args, **kwargs)
        except BaseException:
            if isinstance(opened, SlotAdapter):
                opened.close()
            raise
        if isinstance(opened, SlotAdapter) and self.ca_comm is not opened:
            opened.close()
            if self.rank_in_group == 0:
                there = "nothing" if self.ca_comm is None else type(self.ca_comm).__name__
                logger.warning("Group '%s': vLLM goes on with %s in our place", name, there)
        elif self.rank_in_group == 0:
            nccl = "NCCL with NCCL_P2P_DISABLE=1" if broken else "NCCL"
            tell(logger, name, opened, *vllm_bypass.standing(self, _vllm_config()), nccl)
            if isinstance(opened, SlotAdapter):
                _tell_of_bypasses(name, vllm_bypass.found(self, _vllm_config()))

    cls.__init__ = __init__
    _close_on_destroy(cls)


def _wrap_cpu(cls: Any) -> None:
    """vLLM's CPU communicator has no slot; it gets one, asked first.

    A compiled graph holds vLLM's own opaque op and comes here at run time, as on CUDA, so that one
    graph serves with and without the native path; vLLM's compile cache is told the difference.
    """
    import torch

    init, all_reduce = cls.__init__, cls.all_reduce
    parameters = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        given = parameters.bind(self, *args, **kwargs).arguments
        self.ca_comm = None
        self.pyallreduce_group = _is_ours(given)
        if not self.pyallreduce_group:
            init(self, *args, **kwargs)
            return
        _mark_compile_cache()
        opened = _open(given)
        try:
            init(self, *args, **kwargs)
        except BaseException:
            if isinstance(opened, SlotAdapter):
                opened.close()
            raise
        if isinstance(opened, SlotAdapter):
            self.ca_comm = opened
        if self.rank_in_group == 0:
            tell(logger, given["unique_name"], opened, "vLLM's own")

    @functools.wraps(all_reduce)
    def reduce(self: Any, input_: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor
        if not self.pyallreduce_group:
            result = all_reduce(self, input_)
        elif torch.compiler.is_compiling():
            result = torch.ops.vllm.all_reduce(input_, group_name=self.unique_name)
        elif self.ca_comm is not None and self.ca_comm.should_custom_ar(input_):
            result = self.ca_comm.custom_all_reduce(input_)
        else:  # vLLM's works in place, and an op must not return its own argument
            result = all_reduce(self, input_.clone())
        return result

    cls.__init__, cls.all_reduce = __init__, reduce
    _close_on_destroy(cls)


def _tell_of_bypasses(name: str, past: list[str]) -> None:
    if past:
        hint = f"{vllm_bypass.EXCLUSIVE}=1 ends all that can be ended"
        logger.warning("Group '%s': not all come here: %s; %s", name, "; ".join(past), hint)


def _close_on_destroy(cls: Any) -> None:
    destroy = cls.destroy

    @functools.wraps(destroy)
    def close_and_destroy(self: Any) -> None:
        slot = getattr(self, "ca_comm", None)
        if isinstance(slot, SlotAdapter):
            slot.close()
            self.ca_comm = None
        destroy(self)

    cls.destroy = close_and_destroy


# ---- one group -----------------------------------------------------------------------------------


def _is_ours(given: dict[str, Any]) -> bool:
    """Whether a communicator is being built for a tensor-parallel group of several ranks.

    Elastic expert parallelism builds some over a TCP store, with no process group: not those.
    """
    import torch.distributed as dist

    group = given["cpu_group"]
    return (
        str(given.get("unique_name", "")).split(":")[0] == "tp"
        and given.get("tcp_store_group") is None
        and isinstance(group, dist.ProcessGroup)
        and dist.get_world_size(group) > 1
    )


def _void() -> str:
    """What the user asked of us that a switch of vLLM's makes void; empty if nothing."""
    asked = {"PYALLREDUCE_BACKEND": "native", vllm_bypass.EXCLUSIVE: "1"}
    void = [f"{name}={value}" for name, value in asked.items() if os.environ.get(name) == value]
    return f" ({' and '.join(void)} without effect)" if void else ""


def _answers_unchecked() -> bool:
    """Whether tokens depend on groups whose records the worker that answers does not see."""
    parallel = getattr(_vllm_config(), "parallel_config", None)
    return bool(getattr(parallel, "prefill_context_parallel_size", 1) > 1)


def _open(given: dict[str, Any]) -> SlotAdapter | Reason:
    """The adapter for the slot, or why there is none: every rank of the group gets the same."""
    opened = open_slot(given["cpu_group"], given.get("device"), given.get("device_group"))
    if isinstance(opened, SlotAdapter):
        vllm_steps.guard()
    return opened


@contextmanager
def _in_the_slot(adapter: SlotAdapter | None) -> Iterator[None]:
    """Within, vLLM's constructor gets `adapter` where it would build its own custom all-reduce.

    With None the slot stays empty: vLLM's own is not a fallback, it would hang where ours refused.
    """
    state, own = _parallel_state(), _module(f"{_DEVICES}.custom_all_reduce")
    flag, stock = state._ENABLE_CUSTOM_ALL_REDUCE, own.CustomAllreduce
    state._ENABLE_CUSTOM_ALL_REDUCE = adapter is not None
    own.CustomAllreduce = lambda *_args, **_kwargs: adapter
    try:
        yield
    finally:
        state._ENABLE_CUSTOM_ALL_REDUCE, own.CustomAllreduce = flag, stock


def _mark_compile_cache() -> None:
    """vLLM keys its compiled graphs by its config: ours hold another op than stock vLLM's."""
    extra = getattr(_vllm_config(), "additional_config", None)
    if isinstance(extra, dict):
        extra[_CACHE_KEY] = "vllm.all_reduce"


def _vllm_config() -> Any:
    return _module("vllm.config").get_current_vllm_config_or_none()


def _parallel_state() -> Any:
    return _module("vllm.distributed.parallel_state")


def _module(name: str) -> Any:
    return importlib.import_module(name)
