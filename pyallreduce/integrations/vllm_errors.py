# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""A worker whose error vLLM does not hear ends, so that nobody waits for it.

vLLM's executor takes a step's answer from one worker, and those of the warm-up in the order of the
ranks. Another worker's error stays in its log: the rest wait for it in the next collective, in
NCCL for minutes or without end. A process that ends is heard: vLLM then ends the engine.
"""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from pyallreduce.integrations import adapter

__all__ = ["heard"]

logger = logging.getLogger("vllm.pyallreduce")

# Where all ranks fail alike, vLLM hears in this time of an error that says more than a lost worker.
_GRACE_S = 1.0
# vLLM's own cleaning up may wait for collectives that never end.
_LONGEST_S = 3.0
_within: list[None] = []  # one for each function of `heard()` that this process is within


def heard(method: Callable[..., Any], *, step: bool) -> Callable[..., Any]:
    """A worker's method that all workers call together, for a step or a part of the start-up, with
    one more thing that it may raise:

        SystemExit: it raised something else, and vLLM waits for another worker's answer.
    """

    # No context manager: out of the caches, as it is in each step, it took 12 us on the CPU.
    @functools.wraps(method)
    def together(worker: Any, *args: Any, **kwargs: Any) -> Any:
        _within.append(None)
        try:
            return method(worker, *args, **kwargs)
        except Exception as error:
            # A warm-up may make steps: whose answer is waited for is known to the outermost alone.
            if len(_within) == 1 and not _answers(worker, step=step):
                _end(worker.rank, error)
            raise
        finally:
            _within.pop()

    return together


def _answers(worker: Any, *, step: bool) -> bool:
    """Whether the executor hears this worker's errors, whatever becomes of the others.

    That of one process a worker ("mp") takes a step's answer from the first rank of the last
    pipeline stage: `MultiprocExecutor._get_output_rank`, alike in vLLM 0.20 to 0.33. Other
    executors are left to themselves, and so is vLLM's own fault tolerance, for which a worker must
    live on.
    """
    parallel = getattr(worker, "parallel_config", None)
    if parallel is None or parallel.distributed_executor_backend != "mp":
        return True
    if getattr(parallel, "enable_fault_tolerance", False):
        return True
    stage = parallel.tensor_parallel_size * parallel.prefill_context_parallel_size
    return bool(worker.rank == (parallel.world_size - stage if step else 0))


def _end(rank: int, error: Exception) -> NoReturn:
    message = (
        f"{type(error).__name__}: {error}. pyallreduce ends this worker (rank {rank}): vLLM waits "
        "for another rank's answer, and that one for this rank."
    )
    logger.error("%s", message, exc_info=error)
    adapter.leave_all()
    time.sleep(_GRACE_S)
    # By the kernel: a thread would need the GIL, which whatever hangs may hold.
    with suppress(ValueError):  # not vLLM's loop: another thread than the main one
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, _LONGEST_S)
    raise SystemExit(message) from error
