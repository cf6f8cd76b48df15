# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What an all-reduce must give, by torch alone: the rank-order fp32 sum, rounded once, and its
error.

Every function takes one tensor a rank, in rank order, all of one shape, dtype and device, and gives
tensors of that shape on that device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["checksum", "error_bound", "exact_sum", "loose_bound", "rank_order_sum", "same_bits"]

_FP32_UNIT = 2.0**-24  # unit roundoff: half the distance from 1 to its successor
_FP64_UNIT = 2.0**-53
_INTEGERS = {2: torch.int16, 4: torch.int32}


def rank_order_sum(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """((x0 + x1) + x2) + ... in float32, rounded once to the dtype of the inputs.

    It starts from rank 0's value, not from +0: -0 + -0 is -0.
    """
    total = inputs[0].to(torch.float32)
    for x in inputs[1:]:
        total = total + x.to(torch.float32)
    return total.to(inputs[0].dtype)


def exact_sum(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum in float64, whose own error `error_bound` allows for."""
    total = inputs[0].to(torch.float64)
    for x in inputs[1:]:
        total = total + x.to(torch.float64)
    return total


def error_bound(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The largest |rank_order_sum - exact_sum| that rounding explains; float64.

    N-1 additions in fp32 err by at most g * sum|x| with g = (N-1)u / (1 - (N-1)u), the rounding to
    the result's dtype by its unit times what it rounds, or by half a subnormal. Infinite where an
    input is not finite or the sum may leave the dtype's range: there the bound says nothing.
    """
    return _bound(inputs, len(inputs) - 1, _FP32_UNIT)


def loose_bound(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same for any order of additions that are each rounded to the dtype, as gloo and NCCL
    may."""
    steps, dtype = len(inputs) - 1, inputs[0].dtype
    underflow = steps * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return _bound(inputs, steps, torch.finfo(dtype).eps / 2) + underflow


def same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Elementwise: equal bit for bit, or both NaN; bool. So -0 differs from +0."""
    integer = _INTEGERS[a.element_size()]
    bits = a.contiguous().view(integer) == b.contiguous().view(integer)
    return bits | (a.isnan() & b.isnan())


def checksum(x: torch.Tensor) -> int:
    """A position-dependent 64-bit sum over all bits of `x`, NaN payloads too, to compare ranks
    by."""
    words = x.contiguous().view(_INTEGERS[x.element_size()]).flatten().to(torch.int64)
    weights = 2 * torch.arange(words.numel(), device=x.device) + 1
    return int((words * weights).sum().item())


def _bound(inputs: Sequence[torch.Tensor], steps: int, unit: float) -> torch.Tensor:
    magnitude = exact_sum([x.abs() for x in inputs])
    info = torch.finfo(inputs[0].dtype)
    growth = steps * unit / (1 - steps * unit)
    growth += len(inputs) * _FP64_UNIT  # of exact_sum itself
    summed = growth * magnitude
    rounded = info.eps / 2 * (exact_sum(inputs).abs() + summed)
    subnormal = info.smallest_normal * info.eps / 2
    bound = summed + rounded + subnormal
    in_range = magnitude + bound < info.max
    return torch.where(in_range, bound, torch.full_like(bound, float("inf")))
