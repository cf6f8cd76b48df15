# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Waiting until a device has done its work, with a deadline.

CUDA has no such wait, and frees no memory without waiting. So a thread waits.
"""

from __future__ import annotations

import enum
import logging
import threading
import time

import torch

__all__ = ["Idle", "wait_idle"]

logger = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS = 0.01


class Idle(enum.Enum):
    """What a wait for a device found: its work is done; not yet, and a thread waits on; not known,
    since there was no thread to wait."""

    YES = enum.auto()
    NOT_YET = enum.auto()
    UNKNOWN = enum.auto()


def wait_idle(rank: int, device: int, seconds: float, kept: object) -> Idle:
    """Whether all work of CUDA device `device`, which `rank` uses, ends within so many seconds.

    A thread that is left behind keeps `kept`, and all memory that it holds, until the work has
    ended.
    """
    waiting = threading.Thread(
        target=_wait, args=(rank, device, kept), name="pyallreduce-idle", daemon=True
    )
    try:
        waiting.start()
    except RuntimeError as error:
        # The interpreter ends: from Python 3.12 on it starts no new thread. Or this process has as
        # many as it may have, and nobody can wait.
        done = "shutdown" in str(error) and _synchronized(rank, device)
        return Idle.YES if done else Idle.UNKNOWN
    waiting.join(seconds)
    return Idle.NOT_YET if waiting.is_alive() else Idle.YES


def _wait(rank: int, device: int, _kept: object) -> None:
    while not _synchronized(rank, device):
        time.sleep(_ASK_AGAIN_SECONDS)


def _synchronized(rank: int, device: int) -> bool:
    """Waits for the device. False where CUDA does not, since another thread captures."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        if "captur" in str(error):
            return False
        # The context is gone, and its work with it.
        logger.warning("rank %d: GPU %d: %s", rank, device, error)
    return True
