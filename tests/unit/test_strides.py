# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What a tensor's strides say of its memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyallreduce.arrays import overlaps_itself

sides = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=3)


@given(sides)
def test_no_tensor_that_shares_elements_is_missed(sides: list[tuple[int, int]]) -> None:
    shape, strides = [size for size, _ in sides], [stride for _, stride in sides]
    numbers = torch.arange(1 + sum(size * stride for size, stride in sides))
    found = numbers.as_strided(shape, strides)
    if len(set(found.flatten().tolist())) < math.prod(shape):
        assert overlaps_itself(found)


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(4, 6),
        torch.ones(4, 6).t(),
        torch.ones(4, 6)[::2, 1::3],
        torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.ones(1).expand(1, 1),
        torch.ones(1, 3).expand(0, 3),
        torch.tensor(1.0),
    ],
)
def test_what_shares_nothing_is_not_refused(x: torch.Tensor) -> None:
    assert not overlaps_itself(x)
