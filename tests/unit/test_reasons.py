# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Every reason code has one sentence of cause and one remedy."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest

from pyallreduce import errors
from pyallreduce.errors import (
    AllReduceAborted,
    BackendUnavailable,
    CallMismatch,
    CallRefused,
    PyallreduceError,
    SlabMemoryError,
    WireError,
)
from pyallreduce.reasons import Code, Reason
from pyallreduce.reasons_page import page


@pytest.mark.parametrize("code", list(Code), ids=lambda code: code.value)
def test_every_code_has_one_sentence_and_one_remedy(code: Code) -> None:
    reason = Reason(code)
    assert code.value == code.name
    # A full stop ends the sentence, and no other is followed by a new one.
    assert re.fullmatch(r"[A-Z][^\n]*[^.\n]\.", reason.cause)
    assert not re.search(r"[.!?] +[A-Z]", reason.cause)
    assert re.fullmatch(r"[A-Z][^\n]*[^.\n]\.", reason.remedy)
    assert not re.search(r"[.!?] +[A-Z]", reason.remedy)


def test_the_troubleshooting_page_holds_every_code_as_it_is_today() -> None:
    path = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
    assert path.read_text(encoding="utf-8") == page(), "python -m pyallreduce.reasons_page > docs/"
    assert all(f"`{code.value}`" in page() for code in Code)


def test_causes_are_distinct() -> None:
    assert len({Reason(code).cause for code in Code}) == len(Code)


def test_text_holds_code_cause_detail_and_remedy() -> None:
    bare, full = Reason(Code.MIG), Reason(Code.MIG, "rank 1 (GPU-1a2b3c4d)")
    assert str(bare) == f"MIG: {bare.cause} {bare.remedy}"
    assert str(full) == f"MIG: {full.cause[:-1]}: rank 1 (GPU-1a2b3c4d). {full.remedy}"


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_ours_and_documented(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, PyallreduceError)
    assert inspect.getdoc(error)


@pytest.mark.parametrize(
    "error",
    [
        WireError("3, expected 2", field="world"),
        BackendUnavailable(Reason(Code.MIG, "rank 1")),
        SlabMemoryError(Reason(Code.SLAB_MEMORY, "rank 0")),
        AllReduceAborted(
            "late", rank=1, peer=0, call=7, algorithm="one_shot", nbytes=64, phase="gather"
        ),
        CallMismatch("differ", rank=1, call=7, ours="64 B", theirs="32 B"),
        CallRefused("refused", rank=1, call=7, why="the stream"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes_whole(error: PyallreduceError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_wire_error_names_its_field() -> None:
    error = WireError("3, expected 2", field="world")
    assert str(error) == "world: 3, expected 2"
    assert error.field == "world"


def test_backend_unavailable_speaks_its_reason() -> None:
    reason = Reason(Code.NO_NVLINK, "rank 0 to rank 1")
    assert str(BackendUnavailable(reason)) == str(reason)
