# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""torch.ops.pyallreduce.all_reduce: the out-of-place call as a torch op, so that torch.compile
traces it.

An op takes no Python object: a communicator is known to it by a number, for as long as it is open.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

import torch

from pyallreduce.errors import CommunicatorClosed

if TYPE_CHECKING:
    from pyallreduce.communicator import Communicator
    from pyallreduce.policy import AlgorithmName

__all__ = ["register", "unregister"]

_open: weakref.WeakValueDictionary[int, Communicator] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)

_library = torch.library.Library("pyallreduce", "DEF")  # type: ignore[no-untyped-call]
# A tag that changes from call to call is traced as a symbol: no compilation for each.
_SCHEMA = (
    "all_reduce(Tensor x, int communicator, str op, str? algorithm=None, SymInt tag=0) -> Tensor"
)
_library.define(_SCHEMA)  # type: ignore[no-untyped-call]


def register(communicator: Communicator) -> int:
    """A number for `communicator`, by which the op finds it."""
    number = next(_numbers)
    _open[number] = communicator
    return number


def unregister(number: int) -> None:
    """Forget a communicator; calls of the op with its number are refused from now on."""
    _open.pop(number, None)


def _all_reduce(
    x: torch.Tensor,
    communicator: int,
    op: str,
    algorithm: AlgorithmName | None = None,
    tag: int = 0,
) -> torch.Tensor:
    found = _open.get(communicator)
    if found is None:
        message = f"communicator {communicator} is closed: compile again with an open one"
        raise CommunicatorClosed(message)
    result: torch.Tensor = found.all_reduce(x, op=op, algorithm=algorithm, tag=tag)
    return result


def _all_reduce_fake(x: torch.Tensor, *_arguments: object) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_KEY = "CompositeExplicitAutograd"
_library.impl("all_reduce", _all_reduce, _KEY)  # type: ignore[no-untyped-call]
torch.library.register_fake("pyallreduce::all_reduce", _all_reduce_fake, lib=_library)
# The peers wait for a call, whether or not its result is used here: no graph may drop it.
torch.fx.node.has_side_effect(torch.ops.pyallreduce.all_reduce.default)
