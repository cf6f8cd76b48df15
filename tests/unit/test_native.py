# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How a failure is told, where a peer's stop word is here before the peer's record."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from pyallreduce.config import Config
from pyallreduce.errors import (
    AllReduceAborted,
    CallRefused,
    CommunicatorClosed,
    ExchangeTimeout,
)
from pyallreduce.failure import Stop, error_from
from pyallreduce.native import NativePath
from pyallreduce.reasons import Code

REFUSED_SHAPE = 1 << 7  # csrc/protocol/call.h
TAIL_SHIFT = 8


def record(stop: Stop, code: Code = Code.OK) -> Any:
    theirs = (0, 0, REFUSED_SHAPE, list(Code).index(code))
    return SimpleNamespace(
        state=1 << 8 | stop if stop else 0,
        peer=1 if stop else 0,
        block=0,
        phase=1,
        algorithm=1,
        epoch=4 if stop else 0,
        waited_ms=0,
        drained=0,
        ours=(4, 1, 0, 0) if stop else (0, 0, 0, 0),
        theirs=theirs,
    )


@pytest.fixture(name="native")
def make_native(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A rank 0 of two, and what every look at the records gives; the last one stays."""

    def make(*looks: list[Any]) -> Any:
        left = list(looks)

        def read(_slabs: object) -> list[Any]:
            return left.pop(0) if len(left) > 1 else left[0]

        monkeypatch.setattr("pyallreduce.native.read_records", read)
        monkeypatch.setattr("pyallreduce.records.read_records", read)
        path: Any = object.__new__(NativePath)
        path._exchange = SimpleNamespace(rank=0, failure=None)
        path._slabs = SimpleNamespace(ended=lambda: (-1, ""))
        path.patience, path._quiet = mock.Mock(settled=True), lambda: False
        path._renew_due, path._generation, path.aborts = False, 1, 0
        return path

    return make


def test_a_cause_that_comes_late_is_told(native: Callable[..., Any]) -> None:
    """Rank 0 was stopped by rank 1, whose record is still on its way."""
    early = [record(Stop.PEER), record(Stop.NONE)]
    late = [record(Stop.PEER), record(Stop.REFUSED, Code.STAGE_FAILED)]
    path = native(early, late)
    assert isinstance(path._failure(early), CallRefused)
    assert path._renew_due, "this rank would not join its peers' new generation"


def test_a_cause_that_never_comes_is_not_waited_for_long(native: Callable[..., Any]) -> None:
    seen = [record(Stop.PEER), record(Stop.NONE)]
    path = native(seen)
    assert isinstance(path._failure(seen), AllReduceAborted)
    assert not path._renew_due


def test_a_failure_is_told_though_another_thread_closes(
    native: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [record(Stop.PEER), record(Stop.NONE)]
    path = native(seen)
    closed = mock.Mock(side_effect=CommunicatorClosed("closed"))
    monkeypatch.setattr("pyallreduce.native.read_records", closed)
    monkeypatch.setattr("pyallreduce.records.read_records", closed)
    assert isinstance(path._failure(seen), AllReduceAborted)


@pytest.mark.parametrize("state", [Stop.DEADLINE, Stop.PEER])
@pytest.mark.parametrize("peer", [Stop.NONE, Stop.PEER])
def test_an_abort_is_told_though_another_thread_has_recovered_since(
    native: Callable[..., Any], state: Stop, peer: Stop
) -> None:
    """Records of the next generation tell of nothing, and a peer's may still be of this one."""
    begun = [record(Stop.NONE), record(peer)]
    path = native([record(state), record(peer)], begun)
    with pytest.raises(AllReduceAborted, match="for rank 1") as caught:
        path.check()
    assert caught.value.call == 4


def test_a_check_settles_though_all_is_quiet(native: Callable[..., Any]) -> None:
    path = native([record(Stop.NONE), record(Stop.NONE)])
    path.patience.settled, path._quiet = False, lambda: True
    path.check()
    path.patience.settle_behind_a_check.assert_called_once_with()


def test_a_new_generation_forgets_the_calls_of_the_last(
    native: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = native([record(Stop.NONE), record(Stop.NONE)])
    path._step, path._slabs.arm, path.patience.deadline_ms = mock.Mock(), mock.Mock(), 700
    path._config, meet = Config(exchange_timeout_ms=5_000), mock.Mock()
    monkeypatch.setattr("pyallreduce.native.meet", meet)
    path.renew()
    meet.assert_called_once_with(path._slabs, 0, 2, 5.0)
    path._arm()
    path.patience.forget_calls.assert_called_once_with()
    path._slabs.arm.assert_called_once_with(2, 700)


@pytest.mark.parametrize("death", [(-1, ""), (1, "rank 1 died")])
def test_behind_a_lost_exchange_nobody_is_waited_for(
    native: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, death: tuple[int, str]
) -> None:
    """The group can't be used again: its loss is told anew, at once, unless a rank has died."""
    path = native([record(Stop.NONE), record(Stop.NONE)])
    path._config, path._slabs.ended = Config(), lambda: death
    path._exchange.failure = ExchangeTimeout("rank 1 was lost")
    meet = mock.Mock(side_effect=AllReduceAborted("rank 1 died"))
    monkeypatch.setattr("pyallreduce.native.meet", meet)
    with pytest.raises(AllReduceAborted if death[1] else ExchangeTimeout):
        path.renew()
    assert meet.called == bool(death[1])
    assert path._generation == 1


def test_an_old_refusal_that_is_told_late_starts_nothing(native: Callable[..., Any]) -> None:
    """Another thread has started anew since; this rank would wait for its peers to do so again."""
    refused = [record(Stop.REFUSED, Code.STAGE_FAILED), record(Stop.PEER)]
    path = native(refused)
    path._generation = 2
    assert isinstance(path._failure(refused), CallRefused)
    assert not path._renew_due


def test_a_death_behind_a_refusal_is_told(native: Callable[..., Any]) -> None:
    """Or a program that repeats a refused call would hear of that refusal for ever."""
    refused = [record(Stop.PEER), record(Stop.REFUSED, Code.STAGE_FAILED)]
    path = native(refused)
    path._slabs.ended = lambda: (1, "rank 1 died")
    error = path._failure(refused)
    assert isinstance(error, AllReduceAborted)
    assert "rank 1 died" in str(error)
    assert not path._renew_due


@pytest.mark.parametrize("death", [(-1, ""), (1, "rank 1 ended")])
@pytest.mark.parametrize(("vectors", "tail", "nbytes"), [(1, 12, 12), (3, 2, 34), (3, 0, 48)])
def test_an_error_tells_the_bytes_of_the_call(
    vectors: int, tail: int, nbytes: int, death: tuple[int, str]
) -> None:
    """Not those of its vectors, the last of which may be filled in part."""
    waited = record(Stop.DEADLINE)
    waited.ours = (4, vectors, tail << TAIL_SHIFT, 0)
    error = error_from(0, [waited, record(Stop.NONE)], death)
    assert isinstance(error, AllReduceAborted)
    assert error.nbytes == nbytes
    assert f"{nbytes} bytes" in str(error)
