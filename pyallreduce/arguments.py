# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What a call may be made of: arguments that no backend takes are told what is accepted."""

from __future__ import annotations

import operator
from typing import Any

import torch

from pyallreduce import arrays, policy
from pyallreduce.errors import InvalidCall
from pyallreduce.fallback import OPERATIONS
from pyallreduce.reasons import Code

__all__ = ["ALGORITHMS", "chosen_device", "complaint", "complaint_of_traced"]

ALGORITHMS = (None, "auto", *policy.ALGORITHMS)
_NO_MEMORY = (
    "has no memory of its own: pass the local tensor (of a DTensor: to_local()), outside of "
    "torch.func's transforms"
)
Complaint = tuple[Code, str]


def complaint(
    x: Any, out: Any, op: str, algorithm: str | None, tag: int, device: torch.device
) -> Complaint | None:
    """Why `Communicator.all_reduce` on `device` refuses these arguments; None if it takes them."""
    if not isinstance(x, torch.Tensor):
        accepted = "a torch tensor or an array with __cuda_array_interface__"
        return Code.ARGUMENT, f"{type(x).__name__}: expected {accepted}"
    if x.layout is not torch.strided:
        return Code.ARGUMENT, f"a tensor of layout {x.layout}: expected a dense (strided) one"
    if x.device != device:
        return Code.DEVICE, f"a tensor on {x.device}: this communicator is on {device}"
    if not arrays.has_memory(x):
        return Code.ARGUMENT, f"x, a {type(x).__name__}, {_NO_MEMORY}"
    if x.requires_grad and torch.is_grad_enabled():
        return Code.AUTOGRAD, "a tensor that requires grad: pass x.detach(), or use no_grad"
    if not isinstance(op, str) or op not in OPERATIONS:
        return Code.OP, f"op={op!r}: expected one of {', '.join(OPERATIONS)}"
    if algorithm not in ALGORITHMS:
        return Code.ARGUMENT, f"algorithm={algorithm!r}: expected auto, one_shot or two_shot"
    if not _is_tag(tag):
        return Code.ARGUMENT, f"tag={tag!r}: expected an integer from 0 to 2^31 - 1"
    if not arrays.has_memory(torch.empty(1, device="cpu")):
        return Code.ARGUMENT, "new tensors have no memory here: call it outside of FakeTensorMode"
    if out is None:
        return None
    return (None if out is x else _of_output(x, out)) or _of_target(out)


def complaint_of_traced(x: torch.Tensor, out: torch.Tensor | None) -> str | None:
    """What the op of a compiled call would not see: it works below autograd, on `x` alone, and its
    result is copied to `out`."""
    if torch.is_grad_enabled() and (x.requires_grad or (out is not None and out.requires_grad)):
        return "a tensor that requires grad: pass its detach(), or use no_grad"
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype):
        return "out has another shape or dtype than x"
    return None


def _is_tag(tag: Any) -> bool:
    try:
        return 0 <= operator.index(tag) < 1 << 31
    except TypeError:
        return False


def _of_output(x: torch.Tensor, out: Any) -> Complaint | None:
    if not isinstance(out, torch.Tensor):
        return Code.ARGUMENT, f"out is a {type(out).__name__}: expected a torch tensor"
    given = (tuple(out.shape), out.dtype, out.device, out.layout)
    wanted = (tuple(x.shape), x.dtype, x.device, x.layout)
    if given != wanted:
        return Code.ARGUMENT, f"out is {given}: expected {wanted}, as x"
    if not arrays.has_memory(out):
        return Code.ARGUMENT, f"out, a {type(out).__name__}, {_NO_MEMORY}"
    if arrays.overlap_in_part(x, out):
        return Code.ARGUMENT, "out overlaps x in part: pass x itself, or memory apart from it"
    return None


def _of_target(out: torch.Tensor) -> Complaint | None:
    if out.is_inference() and not torch.is_inference_mode_enabled():
        return Code.ARGUMENT, "out is an inference tensor: call it within torch.inference_mode()"
    if out.requires_grad and torch.is_grad_enabled():
        return Code.AUTOGRAD, "out requires grad: pass out.detach(), or use no_grad"
    if arrays.overlaps_itself(out):
        return Code.ARGUMENT, "out has elements that share memory: pass out.contiguous() or None"
    return None


def chosen_device(device: torch.device | str | int | None) -> torch.device:
    """A device with its index, so that every later comparison is exact.

    Raises:
        InvalidCall: neither a CUDA device that is here nor the CPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidCall(f"device {device!r}: expected a CUDA device or the CPU") from error
    if chosen.type not in ("cuda", "cpu"):
        message = f"device {chosen}: expected a CUDA device or the CPU"
        raise InvalidCall(message)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InvalidCall(f"device {chosen}: torch sees no GPU in this process")
    if str(chosen) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return chosen if chosen.type == "cuda" else torch.device("cpu")
