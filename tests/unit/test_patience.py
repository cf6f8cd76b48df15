# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Which deadline is in force, by what the ranks have done."""

from __future__ import annotations

import contextlib
from typing import cast
from unittest import mock

import pytest

from pyallreduce.config import Config
from pyallreduce.patience import Patience
from pyallreduce.slab import Slabs

SHORT, LONG = 700, 7000


def patience() -> tuple[Patience, mock.Mock]:
    slabs = mock.Mock(spec=Slabs)
    return Patience(cast(Slabs, slabs), Config(timeout_ms=SHORT), "host", 0), slabs


@pytest.mark.parametrize(
    ("asked", "settled", "deadline_ms"),
    [(False, True, SHORT), (False, False, LONG), (True, True, LONG)],
)
def test_a_new_generation_is_as_patient_as_the_last(
    asked: bool, settled: bool, deadline_ms: int
) -> None:
    ranks, _ = patience()
    with ranks.within() if asked else contextlib.nullcontext():
        ranks.settled = settled
        assert ranks.deadline_ms == deadline_ms


def test_a_check_settles_what_a_call_has_begun() -> None:
    ranks, slabs = patience()
    with ranks.within():
        ranks.settle_behind_a_call()
        assert not ranks.settled, "settled while somebody asks for patience"
    ranks.settle_behind_a_check()
    assert ranks.settled
    assert slabs.set_deadline.mock_calls == [mock.call(LONG), mock.call(SHORT)]


def test_a_check_without_a_call_settles_nothing() -> None:
    ranks, _ = patience()
    ranks.begin()
    ranks.settle_behind_a_check()
    assert not ranks.settled


def test_what_is_behind_an_earlier_generations_call_is_forgotten() -> None:
    """On a GPU that is an event, which the new generation's first launch would ask."""
    ranks, _ = patience()
    ranks._first_call = mock.Mock()
    ranks.forget_calls()
    assert ranks._first_call is None


def test_a_call_of_an_earlier_generation_settles_nothing() -> None:
    ranks, _ = patience()
    with ranks.within():
        ranks.settle_behind_a_call()
    ranks.forget_calls()
    ranks.settle_behind_a_check()
    assert not ranks.settled
