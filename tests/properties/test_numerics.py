# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Every result is, bit for bit, the rank-order fp32 sum rounded once, on inputs made to break it; a
row's result does not depend on the batch around it; both algorithms give the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyallreduce.reference import rank_order_sum, same_bits
from tests.properties.host_group import ALGORITHMS, DTYPES, HostGroup, all_reduce

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(400)]
INTEGERS = {2: torch.int16, 4: torch.int32}
KINDS = ("any bits", "cancellation", "overflow", "subnormals", "nan payloads", "sentinels", "zeros")
SETTINGS = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
cases = st.tuples(
    st.integers(2, 8),
    st.sampled_from(DTYPES),
    st.sampled_from(KINDS),
    st.integers(0, 2**31),
    st.integers(1, 700),
)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(INTEGERS[x.element_size()])


def identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    """NaN payloads too."""
    return torch.equal(bits(a), bits(b))


def adversarial(
    kind: str, world: int, dtype: torch.dtype, seed: int, elements: int
) -> list[torch.Tensor]:
    """One tensor a rank."""
    generator = torch.Generator().manual_seed(seed)
    info, integer = torch.finfo(dtype), torch.iinfo(INTEGERS[dtype.itemsize])

    def integers(low: int, high: int) -> torch.Tensor:
        size = (world, elements)
        drawn = torch.randint(low, high + 1, size, generator=generator, dtype=torch.int64)
        return drawn.to(INTEGERS[dtype.itemsize]).view(dtype)

    def normal() -> torch.Tensor:
        return torch.randn((world, elements), generator=generator)

    if kind == "any bits":
        x = integers(integer.min, integer.max)
    elif kind == "cancellation":  # large values that come in pairs of opposite signs
        x = (normal() * 2.0**12).to(dtype)
        x[1::2] = -x[: world // 2 * 2 : 2][: x[1::2].shape[0]]
        x[seed % world] += torch.randn(elements, generator=generator).to(dtype)
    elif kind == "overflow":
        x = (normal().sign() * info.max).to(dtype) * 0.75
    elif kind == "subnormals":
        x = (normal() * info.smallest_normal).to(dtype)
    elif kind == "nan payloads":  # every NaN, quiet or not, of either sign
        infinity = int(bits(torch.tensor([float("inf")], dtype=dtype))[0])
        x = integers(infinity + 1, integer.max)
        x[seed % world] = 1.0
    elif kind == "sentinels":
        x = normal().to(dtype)
        bits(x)[:, ::3] = -1
        bits(x)[seed % world, 1::3] = -1
    else:
        x = torch.zeros((world, elements), dtype=dtype)
        bits(x)[:, ::2] = integer.min  # -0
    return list(x.contiguous())


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[int, HostGroup]]:
    """A group of every size, used by all examples in turn."""
    opened = {world: HostGroup.open(world) for world in range(2, 9)}
    yield {world: context.__enter__() for world, context in opened.items()}
    for context in opened.values():
        context.__exit__(None, None, None)


@SETTINGS
@given(case=cases)
def test_every_bit_is_the_reference_and_the_same_on_all_ranks(
    groups: dict[int, HostGroup], case: tuple[int, torch.dtype, str, int, int]
) -> None:
    world, dtype, kind, seed, elements = case
    inputs = adversarial(kind, world, dtype, seed, elements)
    expected = rank_order_sum(inputs)
    results = {a: all_reduce(groups[world], inputs, a) for a in ALGORITHMS}
    for algorithm, by_rank in results.items():
        assert bool(same_bits(by_rank[0], expected).all()), algorithm
        assert all(identical(by_rank[0], other) for other in by_rank), f"{algorithm}: ranks differ"
    assert identical(results["one_shot"][0], results["two_shot"][0]), "the algorithms differ"


@SETTINGS
@given(case=cases, rows=st.integers(1, 6), row=st.integers(0, 5))
def test_a_row_does_not_depend_on_its_batch(
    groups: dict[int, HostGroup],
    case: tuple[int, torch.dtype, str, int, int],
    rows: int,
    row: int,
) -> None:
    world, dtype, kind, seed, width = case
    row %= rows
    batch = adversarial(kind, world, dtype, seed, rows * width)
    alone = [x[row * width : (row + 1) * width] for x in batch]
    whole = all_reduce(groups[world], batch)[0][row * width : (row + 1) * width]
    assert identical(whole, all_reduce(groups[world], alone)[0])


@pytest.mark.parametrize("kind", ["any bits", "cancellation", "overflow"])
def test_another_order_of_summation_would_be_seen(kind: str) -> None:
    """The negative control: these inputs tell the rank order from its reverse."""
    inputs = adversarial(kind, 5, torch.float32, 1, 500)
    assert not bool(same_bits(rank_order_sum(inputs[::-1]), rank_order_sum(inputs)).all())


def test_a_sum_from_zero_would_be_seen() -> None:
    inputs = adversarial("zeros", 3, torch.bfloat16, 1, 100)
    from_zero = rank_order_sum([torch.zeros_like(inputs[0]), *inputs])
    assert not bool(same_bits(from_zero, rank_order_sum(inputs)).all())


def test_rounding_twice_would_be_seen() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(500, generator=generator).to(torch.bfloat16) for _ in range(4)]
    twice = rank_order_sum([rank_order_sum(inputs[:2]), *inputs[2:]])
    assert not bool(same_bits(twice, rank_order_sum(inputs)).all())
