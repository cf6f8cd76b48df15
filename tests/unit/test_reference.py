# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The reference sum, its error bound, and what judges a result by them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyallreduce import reference
from pyallreduce.check.cases import DTYPES, ladder, special_values, specials
from pyallreduce.check.verify import corrupted, judge

ALL = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
INTEGERS = {2: torch.int16, 4: torch.int32}


def any_bits(world: int, dtype: torch.dtype, seed: int, elements: int = 512) -> list[torch.Tensor]:
    """Any bit patterns: every exponent, subnormals, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(seed)
    integer = INTEGERS[dtype.itemsize]
    info = torch.iinfo(integer)
    return [
        torch.randint(info.min, info.max, (elements,), generator=generator, dtype=integer).view(
            dtype
        )
        for _ in range(world)
    ]


def normal(world: int, dtype: torch.dtype, elements: int) -> list[torch.Tensor]:
    generators = [torch.Generator().manual_seed(rank) for rank in range(world)]
    return [torch.randn(elements, generator=generator).to(dtype) for generator in generators]


def test_the_order_is_that_of_the_ranks() -> None:
    # 1 is lost beside 2^24 in fp32, so each order has a sum of its own.
    one, big = torch.tensor([1.0]), torch.tensor([2.0**24])
    assert reference.rank_order_sum([one, big, -big]).item() == 0.0
    assert reference.rank_order_sum([big, -big, one]).item() == 1.0


def test_it_rounds_once() -> None:
    # In bfloat16, 256 + 1 rounds back to 256, twice; in fp32 the sum is 258, which bfloat16 holds.
    inputs = [torch.tensor([v], dtype=torch.bfloat16) for v in (256.0, 1.0, 1.0)]
    assert reference.rank_order_sum(inputs).item() == 258.0


@ALL
def test_it_starts_from_rank_0_and_not_from_zero(dtype: torch.dtype) -> None:
    total = reference.rank_order_sum([torch.tensor([-0.0], dtype=dtype)] * 3)
    assert math.copysign(1.0, total.item()) == -1.0


@ALL
@given(world=st.integers(2, 8), seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_the_bound_holds_for_any_bits(dtype: torch.dtype, world: int, seed: int) -> None:
    inputs = any_bits(world, dtype, seed)
    error = (reference.rank_order_sum(inputs).double() - reference.exact_sum(inputs)).abs()
    bound = reference.error_bound(inputs)
    assert bool((bound.isinf() | (error <= bound)).all())


@ALL
def test_the_bound_is_tight_enough_to_tell(dtype: torch.dtype) -> None:
    # Two units in the last place are more than rounding explains.
    inputs = [torch.full((64,), 1.5, dtype=dtype), torch.full((64,), 0.25, dtype=dtype)]
    wrong = 1.75 + 4 * torch.finfo(dtype).eps
    assert bool((reference.error_bound(inputs) < abs(wrong - 1.75)).all())


@ALL
def test_no_bound_where_nothing_finite_is_promised(dtype: torch.dtype) -> None:
    most, infinity = torch.finfo(dtype).max, float("inf")
    a = torch.tensor([most, infinity, float("nan"), 1.0], dtype=dtype)
    b = torch.tensor([most, 1.0, 1.0, 1.0], dtype=dtype)
    assert reference.error_bound([a, b]).isinf().tolist() == [True, True, True, False]


@ALL
def test_the_loose_bound_holds_in_the_dtype(dtype: torch.dtype) -> None:
    inputs = normal(8, dtype, 1000)
    in_dtype = inputs[7]
    for x in reversed(inputs[:7]):
        in_dtype = in_dtype + x
    error = (in_dtype.double() - reference.exact_sum(inputs)).abs()
    assert bool((error <= reference.loose_bound(inputs)).all())


@ALL
def test_same_bits_tells_signs_of_zero_and_not_nans(dtype: torch.dtype) -> None:
    a = torch.tensor([0.0, float("nan"), 1.0, float("nan")], dtype=dtype)
    other_nan = special_values(dtype)[0].item()
    b = torch.tensor([-0.0, other_nan, 1.0, 1.0], dtype=dtype)
    assert reference.same_bits(a, b).tolist() == [False, True, True, False]


@ALL
def test_checksum_sees_every_bit_and_every_place(dtype: torch.dtype) -> None:
    x = torch.arange(1, 100).to(dtype)
    assert reference.checksum(x) == reference.checksum(x.clone())
    assert reference.checksum(x) != reference.checksum(x.flip(0))
    assert reference.checksum(x) != reference.checksum(corrupted(x))
    assert reference.checksum(x[:0]) == 0


@ALL
@given(world=st.integers(2, 8), seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_judge_accepts_the_reference(dtype: torch.dtype, world: int, seed: int) -> None:
    inputs = any_bits(world, dtype, seed)
    outcome = judge(reference.rank_order_sum(inputs), inputs, exact_bits=True)
    assert (outcome.wrong, outcome.fault) == (0, "")


@ALL
def test_judge_rejects_one_wrong_bit(dtype: torch.dtype) -> None:
    inputs = normal(3, dtype, 100)
    outcome = judge(corrupted(reference.rank_order_sum(inputs)), inputs, exact_bits=True)
    assert outcome.wrong == 1
    assert "1 of 100 elements are wrong, first at 99" in outcome.fault


def test_judge_without_exact_bits_takes_another_order_but_not_another_sum() -> None:
    inputs = [torch.full((8,), v) for v in (1.0, 2.0**24, -(2.0**24))]
    other_order = reference.rank_order_sum(inputs[::-1])
    assert judge(other_order, inputs, exact_bits=False).wrong == 0
    assert judge(other_order, inputs, exact_bits=True).wrong == 8
    assert judge(other_order + 16, inputs, exact_bits=False).wrong == 8


def test_judge_rejects_another_shape() -> None:
    inputs = [torch.ones(4)] * 2
    assert judge(torch.ones(3) * 2, inputs, exact_bits=True).wrong == 4
    assert judge(torch.ones(4).half() * 2, inputs, exact_bits=True).wrong == 4


@ALL
def test_specials_hold_whole_words_of_the_sentinel(dtype: torch.dtype) -> None:
    for name, inputs in specials(3, dtype):
        words = torch.cat([x[: x.numel() // 2 * 2] for x in inputs]).view(torch.int32)
        assert bool((words == -1).any()), name


@ALL
def test_special_values_kept_their_bits(dtype: torch.dtype) -> None:
    values = special_values(dtype)
    info = torch.finfo(dtype)
    subnormal = values[(values.double().abs() > 0) & (values.double().abs() < info.smallest_normal)]
    assert subnormal.numel() == 3
    assert int(values.isnan().sum()) == 3
    assert int(values.isinf().sum()) == 2
    assert values[values == 0].signbit().tolist() == [False, True]


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_the_ladder_goes_beyond_one_launch(itemsize: int, quick: bool) -> None:
    capacity = 300_000
    sizes = ladder(itemsize, capacity, quick)
    assert sizes == sorted(set(sizes))
    assert {0, 1, 3} <= set(sizes)
    assert sizes[-1] * itemsize > capacity
