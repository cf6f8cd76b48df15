# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What tensors are asked: for captures on their device, whichever is current, and for memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch

from pyallreduce import arrays


@pytest.mark.parametrize("current", [0, 1])
def test_a_capture_is_that_of_the_device_asked(current: int) -> None:
    now = [current]

    @contextlib.contextmanager
    def scope(device: int) -> Iterator[None]:
        now.append(device)
        yield
        now.pop()

    cuda = mock.patch.multiple(
        torch.cuda,
        current_device=lambda: now[-1],
        device=scope,
        is_current_stream_capturing=lambda: now[-1] == 1,
    )
    with cuda:
        assert arrays.is_capturing(1)
        assert not arrays.is_capturing(0)
    assert now == [current]


def test_what_has_no_memory_of_its_own() -> None:
    lazy = torch.nn.UninitializedParameter()
    zero = torch._efficientzerotensor(8)
    assert [arrays.has_memory(x) for x in (lazy, zero)] == [False, False]
    assert arrays.has_memory(torch.ones(8))
    assert arrays.has_memory(torch.ones(0))
