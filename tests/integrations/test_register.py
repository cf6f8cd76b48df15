# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`register()` never raises and starts no CUDA; on stand-ins for the engines."""

from __future__ import annotations

import logging
import sys
import types
from typing import Any

import pytest
import torch

from pyallreduce.integrations import sglang, vllm


@pytest.mark.parametrize("plugin", [vllm, sglang])
def test_an_error_is_a_warning(
    plugin: types.ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def install() -> None:
        raise AttributeError("a name of tomorrow")

    monkeypatch.setattr(plugin, "_install", install)
    with caplog.at_level(logging.WARNING):
        plugin.register()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "could not be installed" in record.getMessage()
    assert "a name of tomorrow" in caplog.text


def test_an_engine_that_is_missing_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    monkeypatch.setitem(sys.modules, "sglang", None)
    vllm.register()
    sglang.register()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_no_cuda_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    class CudaCommunicator:
        def __init__(self) -> None:
            """Unused."""

        def destroy(self) -> None:
            """Unused."""

    def module(name: str, **content: Any) -> None:
        made = types.ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)

    def start() -> None:
        raise AssertionError("CUDA was started")

    platform = types.SimpleNamespace(is_cuda=lambda: True, is_cpu=lambda: False)
    module("vllm", __version__="0.33.0", __file__="/nowhere/vllm/__init__.py")
    module("vllm.platforms", current_platform=platform)
    module(f"{vllm._DEVICES}.cuda_communicator", CudaCommunicator=CudaCommunicator)
    monkeypatch.setattr(vllm, "problems", lambda *_: [])
    monkeypatch.setattr(torch.cuda, "_lazy_init", start)
    before = CudaCommunicator.__init__
    vllm.register()
    assert CudaCommunicator.__init__ is not before
    assert not torch.cuda.is_initialized()
