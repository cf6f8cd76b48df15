# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""No step's result leaves a vLLM worker before every rank's record has been found clean.

An aborted call leaves NaN, or plausible data in blocks that had finished: only the records tell.
They must be read after the synchronisation that makes a step's tokens readable, and before the
tokens are sent. That point is where a worker's `execute_model` or `sample_tokens` returns (with
synchronous scheduling), or where the `get_output` of the object that it returned does (with
asynchronous scheduling, on another thread). Both are the same in every release served and for both
of vLLM's model runners, so the worker's methods are wrapped, once, in the process that built a
communicator. The worker that answers reads the records of all of its tensor-parallel group.

With pipeline parallelism a stage hands its output to the next one, whose worker answers and has
other records: a stage reads its own before it hands over, behind its GPU. It hands over through the
pipeline's group, or, where Ray carries the outputs itself, as a tuple that the worker returns. The
last stage hands its logits to all where an external launcher makes an engine of each process.

An error there becomes the worker's answer, which ends the request and the engine; that of a worker
whose answer nobody waits for ends this worker (`vllm_errors`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pyallreduce.errors import PyallreduceError
from pyallreduce.integrations import adapter, vllm_errors

__all__ = ["guard"]

_MARK = "_pyallreduce_guarded"
_ARRIVE = "get_output"
_WORKER = ("vllm.v1.worker.gpu_worker", "Worker")  # the CPU's worker derives from it
_RAY = ("vllm.v1.executor.ray_utils", "RayWorkerWrapper")
_PROCESS = ("vllm.v1.executor.multiproc_executor", "WorkerProc")
_GROUP = ("vllm.distributed.parallel_state", "GroupCoordinator")


def guard() -> None:
    """Wrap what this process runs of vLLM's workers; safe to call again."""
    for worker in _with_subclasses(_loaded(*_WORKER)):
        _replace(worker, "execute_model", _step)
        _replace(worker, "sample_tokens", _sample)
        _replace(worker, "determine_available_memory", _profile)
        _replace(worker, "compile_or_warm_up_model", _warm_up)
        # Of data parallelism: a forward pass whose result nobody reads.
        _replace(worker, "execute_dummy_batch", _alone)
    # Ray's workers go round the methods above.
    _replace(_loaded(*_RAY), "execute_model_ray", _step)
    _replace(_loaded(*_PROCESS), "enqueue_output", _answer)
    for group in _with_subclasses(_loaded(*_GROUP)):
        for send in ("send_tensor_dict", "isend_tensor_dict", "broadcast_tensor_dict"):
            _replace(group, send, _hand_over)


def _step(original: Callable[..., Any]) -> Callable[..., Any]:
    sampled = _sample(original)

    @functools.wraps(original)
    def execute(*args: Any, **kwargs: Any) -> Any:
        adapter.start_step()
        return sampled(*args, **kwargs)

    return execute


def _sample(original: Callable[..., Any]) -> Callable[..., Any]:
    return _alone(_result(original))


def _alone(original: Callable[..., Any]) -> Callable[..., Any]:
    """An error that one rank raises alone in a step must not be lost on the others."""
    return vllm_errors.heard(original, step=True)


def _result(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def arrive(*args: Any, **kwargs: Any) -> Any:
        return _checked(original(*args, **kwargs))

    return arrive


def _profile(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def profile(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        adapter.check_behind_the_gpu()  # a server whose start was aborted is not ready
        return result

    return vllm_errors.heard(profile, step=False)


def _warm_up(original: Callable[..., Any]) -> Callable[..., Any]:
    profiled = _profile(original)

    @functools.wraps(original)
    def warm_up(*args: Any, **kwargs: Any) -> Any:
        result = profiled(*args, **kwargs)
        adapter.settle_all()
        return result

    return warm_up


def _hand_over(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def send(*args: Any, **kwargs: Any) -> Any:
        adapter.check_behind_the_gpu()
        return original(*args, **kwargs)

    return send


def _answer(original: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM 0.20 lets an error of `get_output` end the thread that answers: then nobody would."""

    @functools.wraps(original)
    def enqueue(self: Any, output: Any) -> Any:
        try:
            return original(self, output)
        except PyallreduceError as error:
            return original(self, error)

    return enqueue


def _checked(result: Any) -> Any:
    """`result`, if it is there and sound; one that is still on its way is checked on arrival."""
    if result is None:
        return None  # the forward pass alone: its tokens come from sample_tokens
    arrive = getattr(result, _ARRIVE, None)
    if isinstance(result, tuple):
        adapter.check_behind_the_gpu()  # a stage's output, which Ray hands to the next
    elif arrive is None:
        adapter.check_all()
    elif not hasattr(arrive, _MARK):
        method = getattr(arrive, "__func__", None)
        owners = (c for c in type(result).__mro__ if method and vars(c).get(_ARRIVE) is method)
        owner = next(owners, None)
        if owner is not None:
            # Not on the object: it would hold itself, and its tensors, until a cyclic collection.
            _replace(owner, _ARRIVE, _result)
        else:
            setattr(result, _ARRIVE, _mark(_result(arrive)))
    return result


def _replace(owner: type | None, name: str, wrap: Callable[..., Any]) -> None:
    method = vars(owner).get(name) if owner is not None else None
    if method is not None and not hasattr(method, _MARK):
        setattr(owner, name, _mark(wrap(method)))


def _mark(function: Callable[..., Any]) -> Callable[..., Any]:
    setattr(function, _MARK, True)
    return function


def _loaded(module: str, name: str) -> type | None:
    """A class that this process has imported, or None: nothing is imported for its sake."""
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def _with_subclasses(cls: type | None) -> Iterator[type]:
    if cls is not None:
        yield cls
        children: list[type] = cls.__subclasses__()
        for child in children:
            yield from _with_subclasses(child)
