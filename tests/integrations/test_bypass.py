# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What goes round the slot is named with its setting; what `pyallreduce info` says of engines."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace as Made

import pytest

from pyallreduce.errors import ConfigError
from pyallreduce.integrations import status, vllm_bypass


def config(**passes: bool) -> Made:
    return Made(compilation_config=Made(pass_config=Made(**passes)))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*vllm_bypass._VARIABLES, vllm_bypass.EXCLUSIVE, "VLLM_PLUGINS"):
        monkeypatch.setenv(name, "")  # so that what a test changes is put back
        monkeypatch.delenv(name)


def test_nothing_goes_round_a_plain_vllm() -> None:
    plain = Made(fi_ar_comm=None, fi_pcie_ipc_ar_comm=None)
    assert vllm_bypass.found(plain, config(fuse_allreduce_rms=False, enable_sp=False)) == []
    assert vllm_bypass.found(Made(), None) == []


def test_each_way_round_is_named_with_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_NCCL_SYMM_MEM", "1")
    communicator = Made(fi_ar_comm=Made(disabled=False), fi_pcie_ipc_ar_comm=Made(disabled=False))
    told = vllm_bypass.found(communicator, config(fuse_allreduce_rms=True, enable_sp=True))
    assert len(told) == 5
    text = " ".join(told)
    for setting in (*vllm_bypass._VARIABLES, '"fuse_allreduce_rms": false', '"enable_sp": false'):
        assert setting in text


def test_a_disabled_backend_is_none() -> None:
    assert vllm_bypass.found(Made(fi_ar_comm=Made(disabled=True)), None) == []


def test_exclusive_switches_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not vllm_bypass.exclusive()
    monkeypatch.setenv(vllm_bypass.EXCLUSIVE, "1")
    assert vllm_bypass.exclusive()
    monkeypatch.setenv("VLLM_USE_NCCL_SYMM_MEM", "1")
    given = config(fuse_allreduce_rms=True)
    vllm_bypass.switch_off(given)
    assert vllm_bypass.found(Made(), given) == []
    vllm_bypass.switch_off(None)


def test_exclusive_is_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm_bypass.EXCLUSIVE, "yes")
    with pytest.raises(ConfigError, match="0 or 1"):
        vllm_bypass.exclusive()


def test_info_has_a_line_for_each_engine() -> None:
    lines = [line for line in status.lines({}) if not line.startswith(" ")]
    assert len(lines) == 2
    assert [line[:4] for line in lines] == ["vllm", "sgla"]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_info_tells_what_vllm_would_do() -> None:
    assert "the plugin loads" in status.lines({})[0]
    assert "VLLM_PLUGINS=x leaves pyallreduce out" in status.lines({"VLLM_PLUGINS": "x"})[0]
    assert "leaves its slot empty" in status.lines({"PYALLREDUCE_BACKEND": "nccl"})[0]
