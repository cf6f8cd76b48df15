# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The path that always exists: torch.distributed's all-reduce, by NCCL or gloo."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pyallreduce.errors import AllReduceAborted, InvalidCall, NotAMember
from pyallreduce.exchange import Exchange, backends_of

__all__ = ["OPERATIONS", "Fallback"]

OPERATIONS = {
    "sum": dist.ReduceOp.SUM,
    "avg": dist.ReduceOp.AVG,
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
    "product": dist.ReduceOp.PRODUCT,
}


class Fallback:
    """All-reduce through torch.distributed.

    CUDA tensors go to the NCCL of the group given, or to `fallback_group`; for a group without
    NCCL one is made of the same ranks. Where NCCL can't serve (several ranks on one GPU) gloo
    carries them through host memory. CPU tensors go to gloo.
    """

    def __init__(
        self, exchange: Exchange, device: torch.device, group: dist.ProcessGroup | None, nccl: bool
    ) -> None:
        self._rank, self._world = exchange.rank, exchange.world
        self._group = exchange.group if group is None else group
        if group is not None and group is not exchange.group:
            members = dist.get_process_group_ranks(group)
            if members != dist.get_process_group_ranks(exchange.group):
                raise NotAMember(f"fallback_group has ranks {members}: expected those of the group")
        backend = backends_of(self._group).get(device.type)
        nccl = nccl and dist.is_nccl_available()
        if group is None and device.type == "cuda" and nccl and backend != "nccl":
            self._group = exchange.companion("nccl")
        self.name = backends_of(self._group).get(device.type, "none")

    def all_reduce(self, x: torch.Tensor, out: torch.Tensor, op: str) -> None:
        """Reduce `x` over the ranks into `out`; they may be the same tensor.

        Raises:
            InvalidCall: `op` is unknown, or this backend has it not for this dtype.
            AllReduceAborted: a rank was lost, or did not come within the group's own timeout.
        """
        if op not in OPERATIONS:
            raise InvalidCall(f"op={op!r}: expected one of {', '.join(OPERATIONS)}")
        if op == "avg" and x.dtype is torch.bool:
            raise InvalidCall(f"rank {self._rank}: op='avg' of a {x.dtype} tensor: use 'max'")
        if not _same(x, out):
            out.copy_(x)
        average = op == "avg" and self.name != "nccl"  # gloo has no AVG
        work = out if _is_as_stored(out) else out.clone(memory_format=torch.contiguous_format)
        try:
            dist.all_reduce(work, OPERATIONS["sum" if average else op], group=self._group)
        except (RuntimeError, ValueError, TypeError) as error:
            if _is_of_transport(error):
                raise self._cut_off(x, error) from error
            does_not = f"rank {self._rank}: {self.name} does not"
            message = f"{does_not} {op} a {x.dtype} tensor on {x.device}: {error}"
            raise InvalidCall(message) from error
        if average:
            inexact = work.is_floating_point() or work.is_complex()
            work.div_(self._world, rounding_mode=None if inexact else "floor")
        if work is not out:
            out.copy_(work)

    def _cut_off(self, x: torch.Tensor, error: Exception) -> AllReduceAborted:
        message = (
            f"rank {self._rank}: {self.name}'s all-reduce of {x.nbytes} bytes of {x.dtype} was cut "
            f"off: a peer was lost, or did not come ({error}). Look at the other ranks' logs; this "
            "process group can't be used any more."
        )
        return AllReduceAborted(message, rank=self._rank, nbytes=x.nbytes, algorithm=self.name)


def _same(x: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether `out` already holds what `x` does."""
    places = [(t.data_ptr(), t.stride(), t.is_neg(), t.is_conj()) for t in (x, out)]
    return places[0] == places[1]


def _is_as_stored(x: torch.Tensor) -> bool:
    """Whether its bytes are its values, in order: a backend does not see the bits that say that
    they are to be negated or conjugated first."""
    return x.is_contiguous() and not x.is_neg() and not x.is_conj()


def _is_of_transport(error: Exception) -> bool:
    """Whether it is of a peer or the way to it, not of the arguments. Gloo has no type for that."""
    marks = ("/transport/", "imed out", "pair closure")
    return isinstance(error, dist.DistError) or any(mark in str(error) for mark in marks)
