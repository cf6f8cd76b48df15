# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The judgement of the live checks, over a native path that does as it is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from pyallreduce import _C, validate
from pyallreduce.edge import Edge
from pyallreduce.errors import AllReduceAborted, CallMismatch
from pyallreduce.policy import ALGORITHM_NAMES, AlgorithmName, Limits, Plan, plan_for
from pyallreduce.reasons import Code

NONCE = bytes(16)
CPU = torch.device("cpu")
SOUND, SILENT, CORRUPT = 1, 2, 3


class Native:
    """Two ranks with equal inputs but for `wrong`, which is added to the last element."""

    limits = Limits(2, "cuda", 128)
    layout = _C.Layout(2, 64 << 20)

    def __init__(self, edges: list[Edge] | None = None, wrong: float = 0.0) -> None:
        self.found = edges or []
        self.wrong = wrong
        self.error: Exception | None = None
        self.plans: list[tuple[Plan, int]] = []
        self.patience = mock.Mock()

    def plan(self, nbytes: int, algorithm: AlgorithmName) -> Plan:
        return plan_for(nbytes, self.limits, algorithm)

    def capacity(self, algorithm: AlgorithmName) -> int:
        one_shot = algorithm == "one_shot"
        return (self.layout.one_shot_capacity if one_shot else self.layout.two_shot_capacity)(128)

    def ping_pong(self, _rounds: int, _seed: int) -> list[Edge]:
        return self.found

    def all_reduce(self, x: torch.Tensor, out: torch.Tensor, plan: Plan) -> None:
        if self.error is not None:
            raise self.error
        self.plans.append((plan, x.nbytes))
        turn = next(t for t in range(9) if bool((_input(0, t, x.numel()) == x).all()))
        out.copy_(x.float() + _input(1, turn, x.numel()).to(x.dtype).float())
        out[-1] += self.wrong

    def check(self) -> None: ...


def _input(rank: int, turn: int, elements: int) -> torch.Tensor:
    return (torch.arange(elements) * 7 + rank * 13 + turn * 17) % 31 + 1


def first_calls(native: Any) -> Code:
    return validate.first_calls(native, 0, CPU).code


def test_right_sums_are_accepted() -> None:
    assert first_calls(Native()) is Code.OK


def test_the_widest_grids_and_laps_are_proved() -> None:
    native = Native()
    first_calls(native)
    assert len(native.plans) == 9
    for code in ALGORITHM_NAMES:
        assert max(plan.blocks for plan, _ in native.plans if plan.algorithm == code) == 128
    plan, nbytes = native.plans[-1]
    assert native.layout.next_portion(plan.algorithm, plan.blocks, plan.lanes, nbytes)[1] == 2


def test_a_wrong_sum_is_a_veto() -> None:
    assert first_calls(Native(wrong=1.0)) is Code.KERNEL_MISMATCH


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CallMismatch("differ"), Code.KERNEL_MISMATCH),
        (AllReduceAborted("late"), Code.KERNEL_TIMEOUT),
        (RuntimeError("lost"), Code.STAGE_FAILED),
    ],
)
def test_an_error_is_a_veto(error: Exception, code: Code) -> None:
    native = Native()
    native.error = error
    assert first_calls(native) is code


def test_where_an_unforeseen_error_came_from_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reason's remedy sends people there."""
    native = Native()
    native.error = RuntimeError("lost")
    first_calls(native)
    (line,) = caplog.records
    assert line.exc_info is not None
    assert line.exc_info[1] is native.error
    caplog.clear()
    native.error = AllReduceAborted("late")  # foreseen: the reason says it all
    first_calls(native)
    assert not caplog.records


def test_the_graph_is_captured_on_the_device_of_the_calls() -> None:
    """Whichever device is the current one. The cases are on the CPU: there is no GPU here."""
    device, scopes, seen = torch.device("cuda", 1), [0], list[Any]()

    @contextlib.contextmanager
    def scope(chosen: torch.device) -> Iterator[None]:
        scopes.append(chosen.index)
        yield
        scopes.pop()

    def graph(_graph: Any, *, stream: Any, **_rest: Any) -> Any:
        seen.append((scopes[-1], stream))
        return contextlib.nullcontext()

    cuda = mock.patch.multiple(
        torch.cuda, CUDAGraph=mock.Mock(), Stream=str, device=scope, graph=graph
    )
    on_cpu = validate._case
    cases = mock.patch.object(
        validate, "_case", lambda world, rank, _device, *rest: on_cpu(world, rank, CPU, *rest)
    )
    native: Any = Native()
    with cuda, cases:
        validate.first_calls(native, 0, device)
    assert seen == [(1, "cuda:1")]


@pytest.mark.parametrize(
    ("state", "rounds", "read_back", "code"),
    [
        (SOUND, 8, False, Code.OK),
        (CORRUPT, 3, False, Code.P2P_CORRUPT),
        (SILENT, 1, False, Code.P2P_WRITE_LOST),
        (SILENT, 0, True, Code.KERNEL_TIMEOUT),
        (SILENT, 1, True, Code.P2P_PRIVATE_MIRROR),
    ],
)
def test_an_edge_is_named_for_what_is_wrong_with_it(
    state: int, rounds: int, read_back: bool, code: Code
) -> None:
    native: Any = Native([Edge(1, state, rounds, 1000, read_back)])
    assert validate.edges(native, 0, NONCE).code is code
