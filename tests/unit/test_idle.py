# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""A wait for a device that has its deadline, over a device that answers as it is told."""

from __future__ import annotations

import threading
import weakref
from unittest import mock

import torch

from pyallreduce.idle import Idle, wait_idle


class Slabs:
    """What the device may still work in."""


def found(*answers: Exception | None) -> Idle:
    """What a wait finds for a device whose synchronisation answers so; each is asked for once."""
    with mock.patch.object(torch.cuda, "synchronize", side_effect=answers) as asked:
        result = wait_idle(1, 0, 5.0, kept=None)
    assert asked.call_count == len(answers)
    return result


def test_a_device_in_whose_process_another_thread_captures_is_asked_again() -> None:
    captures = RuntimeError("CUDA error: operation not permitted when stream is capturing")
    assert found(captures, captures, None) is Idle.YES


def test_a_device_whose_context_is_gone_is_idle() -> None:
    assert found(RuntimeError("CUDA error: an illegal memory access")) is Idle.YES


def test_a_device_that_works_on_is_not_waited_for_longer() -> None:
    ends, slabs = threading.Event(), Slabs()
    alive = weakref.ref(slabs)
    with mock.patch.object(torch.cuda, "synchronize", side_effect=lambda _: ends.wait(30)):
        assert wait_idle(1, 0, 0.01, kept=slabs) is Idle.NOT_YET
        del slabs
        assert alive() is not None, "memory that the device still works in was let go of"
        ends.set()


def test_a_device_is_not_called_idle_by_who_has_no_thread_to_wait() -> None:
    none_left = RuntimeError("can't start new thread")
    with mock.patch.object(threading.Thread, "start", side_effect=none_left):
        assert found() is Idle.UNKNOWN


def test_at_the_interpreters_end_the_device_is_waited_for_without_a_thread() -> None:
    ending = RuntimeError("can't create new thread at interpreter shutdown")
    with mock.patch.object(threading.Thread, "start", side_effect=ending):
        assert found(None) is Idle.YES
