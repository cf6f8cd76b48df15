# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Live calls at start-up: the production launch, slab and shapes, before anybody hears "ready".

Every algorithm runs once on a pattern that names rank and position, and is compared bit for bit.
"""

from __future__ import annotations

import torch

from pyallreduce.errors import AllReduceAborted, PyallreduceError
from pyallreduce.native import NativePath
from pyallreduce.policy import AlgorithmName
from pyallreduce.reasons import Code, Reason

__all__ = ["first_calls"]

_ELEMENTS = 4099  # several blocks, and a tail
_ALGORITHMS: tuple[AlgorithmName, ...] = ("one_shot", "two_shot")


def first_calls(native: NativePath, rank: int, device: torch.device) -> Reason:
    """OK, or why this rank vetoes the native path. Every rank of the group must call it."""
    world = native.limits.world
    try:
        for turn, algorithm in enumerate(_ALGORITHMS):
            x = _pattern(rank, turn, device)
            everybody = [_pattern(r, turn, device) for r in range(world)]
            expected = torch.stack(everybody).sum(0)
            out = torch.full_like(x, -1.0)
            native.all_reduce(x, out, native.plan(x.numel() * x.element_size(), algorithm))
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
            native.check()
            if not torch.equal(out, expected):
                wrong = int((out != expected).sum())
                detail = f"{algorithm}: {wrong} of {_ELEMENTS} elements"
                return Reason(Code.KERNEL_MISMATCH, detail)
    except AllReduceAborted as error:
        return Reason(Code.KERNEL_TIMEOUT, str(error))
    except (PyallreduceError, RuntimeError) as error:
        return Reason(Code.STAGE_FAILED, str(error))
    return Reason(Code.OK)


def _pattern(rank: int, turn: int, device: torch.device) -> torch.Tensor:
    """Small integers, so that every order of summation is exact."""
    at = torch.arange(_ELEMENTS, device=device, dtype=torch.int64)
    return ((at * 7 + rank * 131 + turn * 17) % 251).to(torch.float32)
