# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What a tensor's device is asked, whichever one is current."""

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
