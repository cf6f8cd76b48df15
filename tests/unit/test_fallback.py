# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What an error of torch.distributed's all-reduce is told as."""

from __future__ import annotations

from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from pyallreduce.errors import AllReduceAborted, InvalidCall
from pyallreduce.exchange import Exchange
from pyallreduce.fallback import Fallback

CLOSED = (
    "[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:45284."
)
SILENT = "[third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms"


def told_of(error: Exception) -> Exception:
    group = mock.Mock()
    exchange = cast(Exchange, mock.Mock(rank=1, world=2, group=group))
    config = mock.patch.object(dist, "get_backend_config", return_value="cpu:gloo,cuda:nccl")
    call: Any = mock.patch.object(dist, "all_reduce", side_effect=error)
    x = torch.ones(6)
    with config, call:
        fallback = Fallback(exchange, x.device, None, nccl=False)
        with pytest.raises((InvalidCall, AllReduceAborted)) as raised:
            fallback.all_reduce(x, torch.empty(6), "sum")
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CLOSED),
        RuntimeError(SILENT),
        RuntimeError("Operation timed out!"),
        RuntimeError("Application timeout caused pair closure"),
        dist.DistBackendError("NCCL error in: ... ncclRemoteError"),
        dist.DistNetworkError("The client socket has timed out"),
    ],
)
def test_a_peer_that_is_lost_is_no_fault_of_the_call(error: Exception) -> None:
    told = told_of(error)
    assert isinstance(told, AllReduceAborted)
    assert (told.rank, told.nbytes, told.algorithm) == (1, 24, "gloo")
    assert str(error) in str(told)


@pytest.mark.parametrize(
    "error", [RuntimeError("Invalid scalar type"), ValueError("no MAX"), TypeError("not supported")]
)
def test_what_a_backend_does_not_have_is_an_invalid_call(error: Exception) -> None:
    assert isinstance(told_of(error), InvalidCall)
