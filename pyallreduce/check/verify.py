# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Judge one result: bit for bit against the rank-order sum, and within its error bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pyallreduce import reference

__all__ = ["Outcome", "corrupted", "judge"]


@dataclass(frozen=True)
class Outcome:
    """Of one call on one rank: `checksum` over the result's bits, which all ranks must share; how
    many elements are `wrong`, and `fault`, what is wrong in words: 0 and empty if nothing is."""

    checksum: int
    wrong: int = 0
    fault: str = ""


def judge(result: torch.Tensor, inputs: Sequence[torch.Tensor], *, exact_bits: bool) -> Outcome:
    """Compare `result` with what `inputs`, one a rank, must give.

    Args:
        exact_bits: the rank-order fp32 sum is promised (native); else any order of summation in the
            dtype will do (NCCL, gloo).
    """
    if result.dtype != inputs[0].dtype or result.numel() != inputs[0].numel():
        shape = f"{result.dtype} of {result.numel()} elements"
        expected_shape = f"{inputs[0].dtype} of {inputs[0].numel()}"
        fault = f"the result is {shape}, expected {expected_shape}"
        return Outcome(0, inputs[0].numel(), fault)
    flat = result.flatten()
    expected = reference.rank_order_sum(inputs)
    bound = reference.error_bound(inputs) if exact_bits else reference.loose_bound(inputs)
    error = (flat.to(torch.float64) - reference.exact_sum(inputs)).abs()
    within = bound.isinf() | (error <= bound)  # no bound where nothing finite is promised
    right = within & reference.same_bits(flat, expected) if exact_bits else within
    checksum = reference.checksum(flat)
    if bool(right.all()):
        return Outcome(checksum)
    wrong = (~right).nonzero().flatten()
    first = int(wrong[0])
    values = ", ".join(f"{float(x[first]):.9g}" for x in inputs)
    fault = (
        f"{wrong.numel()} of {flat.numel()} elements are wrong, first at {first}: "
        f"{float(flat[first]):.9g}, expected {float(expected[first]):.9g} from {values}"
    )
    return Outcome(checksum, wrong.numel(), fault)


def corrupted(result: torch.Tensor) -> torch.Tensor:
    """A copy with the lowest bit of its last element flipped: the negative control of the check."""
    wrong = result.clone().flatten()
    wrong.view({2: torch.int16, 4: torch.int32}[result.element_size()])[-1] ^= 1
    return wrong.view_as(result)
