# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What goes round the slot is named with its setting; what `pyallreduce info` says of engines."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from types import SimpleNamespace as Made

import pytest

from pyallreduce.errors import ConfigError
from pyallreduce.integrations import sglang_bypass, status, vllm_bypass


def config(**passes: bool) -> Made:
    return Made(compilation_config=Made(pass_config=Made(**passes)))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm.envs", raising=False)
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
    passes = {"fuse_allreduce_rms": True, "fuse_minimax_qk_norm": True, "enable_sp": True}
    told = vllm_bypass.found(communicator, config(**passes))
    assert len(told) == 6
    text = " ".join(told)
    for setting in (*vllm_bypass._VARIABLES[:3], *(f'"{name}": false' for name in passes)):
        assert setting in text


def test_what_stands_behind_the_slot_is_named_where_it_is_empty() -> None:
    symmetric = Made(fi_ar_comm=Made(disabled=False), symm_mem_comm=Made(disabled=False))
    names = ["FlashInfer's all-reduce", "vLLM's symmetric memory"]
    assert vllm_bypass.standing(symmetric, None) == names
    assert len(vllm_bypass.found(symmetric, None)) == 1, "it does not go past ours"
    assert vllm_bypass.standing(Made(symm_mem_comm=Made(disabled=True)), None) == []


def test_a_disabled_backend_is_none() -> None:
    assert vllm_bypass.found(Made(fi_ar_comm=Made(disabled=True)), None) == []


def test_exclusive_switches_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not vllm_bypass.exclusive()
    monkeypatch.setenv(vllm_bypass.EXCLUSIVE, "1")
    assert vllm_bypass.exclusive()
    monkeypatch.setenv("VLLM_USE_NCCL_SYMM_MEM", "1")
    given = config(fuse_allreduce_rms=True, fuse_minimax_qk_norm=True)
    vllm_bypass.switch_off(given)
    assert vllm_bypass.found(Made(), given) == []
    assert all(os.environ[name] == "0" for name in vllm_bypass._VARIABLES)
    vllm_bypass.switch_off(None)


def test_exclusive_leaves_models_that_fuse_themselves_without_a_workspace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They look at no setting: they ask FlashInfer's part of vLLM, which makes it by a global."""
    name = vllm_bypass._FUSED_BY_MODELS
    for package in (".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    module = types.ModuleType(name)
    exec(
        "def _create_workspace(*a): return 'one'\ndef get(): return _create_workspace(2)",
        vars(module),
    )
    monkeypatch.setitem(sys.modules, name, module)
    assert module.get() == "one"
    vllm_bypass.switch_off(None)
    assert module.get() is None


@pytest.mark.parametrize(
    ("environ", "release", "flashinfer", "told"),
    [
        ({}, (0, 33, 0), False, []),
        ({}, (0, 33, 0), True, ["RMSNorm", "FlashInfer's all-reduce ("]),
        ({}, (0, 28, 1), True, ["RMSNorm"]),
        ({}, (), True, ["RMSNorm"]),
        ({"VLLM_ALLREDUCE_USE_FLASHINFER": "0"}, (0, 33, 0), True, ["RMSNorm"]),
        ({"VLLM_ALLREDUCE_USE_FLASHINFER": "1"}, (0, 26), True, ["RMSNorm", "FlashInfer's"]),
        ({"VLLM_ALLREDUCE_USE_FLASHINFER": "1"}, (0, 26), False, []),
        ({"VLLM_USE_NCCL_SYMM_MEM": "1"}, (0, 26), False, ["NCCL's symmetric memory"]),
        ({"VLLM_ALLREDUCE_USE_SYMM_MEM": "1"}, (0, 26), False, []),
    ],
)
def test_what_an_environment_lets_expect(
    environ: dict[str, str], release: tuple[int, ...], flashinfer: bool, told: list[str]
) -> None:
    found = vllm_bypass.expected(environ, release, flashinfer=flashinfer, empty=False)
    assert len(found) == len(told)
    assert all(name in line for name, line in zip(told, found, strict=True))


def test_symmetric_memory_is_expected_where_the_slot_is_empty() -> None:
    def names(environ: dict[str, str]) -> list[str]:
        return vllm_bypass.expected(environ, (0, 26), flashinfer=False, empty=True)

    assert [line[:23] for line in names({})] == ["vLLM's symmetric memory"]
    assert names({"VLLM_ALLREDUCE_USE_SYMM_MEM": "0"}) == []


@pytest.mark.parametrize(
    ("engine", "listed", "loads"),
    [
        ("vllm", "pyallreduce", True),
        ("vllm", "other,pyallreduce", True),
        ("vllm", "other, pyallreduce", False),
        ("vllm", "", False),
        ("sglang", "other, pyallreduce", True),
        ("sglang", "", True),
        ("sglang", "other", False),
    ],
)
def test_a_list_of_plugins_is_read_as_its_engine_reads_it(
    engine: str, listed: str, loads: bool
) -> None:
    assert ("pyallreduce" in status._listed(engine, listed)) == loads


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
    forced = status.lines({"PYALLREDUCE_BACKEND": "nccl"})
    assert "leaves its slot empty" in forced[0]
    assert any("vLLM's symmetric memory" in line for line in forced)
    exclusive = status.lines({"PYALLREDUCE_VLLM_EXCLUSIVE": "1"})
    assert exclusive[1] == "  PYALLREDUCE_VLLM_EXCLUSIVE=1: no other backend comes first"


@pytest.mark.parametrize(
    ("version", "environ", "off"),
    [
        ("0.30.1", {"VLLM_BATCH_INVARIANT": "1"}, True),
        ("0.30.1", {"VLLM_BATCH_INVARIANT": "0"}, False),
        ("0.30.1", {}, False),
        ("0.32.0", {"VLLM_BATCH_INVARIANT": "1"}, False),
        ("unknown", {"VLLM_BATCH_INVARIANT": "1"}, False),
    ],
)
def test_batch_invariance_switches_ours_off_in_some_releases(
    version: str, environ: dict[str, str], off: bool
) -> None:
    assert status._is_switched_off(environ, version) is off


def test_what_stands_beside_nccl_in_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_ENABLE_PCIE_IPC_ALLREDUCE", raising=False)
    given = Made(enable_mscclpp=True, enable_torch_symm_mem=True)
    assert sglang_bypass.standing(given, (0, 5, 23)) == ["mscclpp", "torch's symmetric memory"]
    assert [str(way)[:7] for way in sglang_bypass.found(given, (0, 5, 23))] == ["mscclpp"]
    monkeypatch.setenv("SGLANG_ENABLE_PCIE_IPC_ALLREDUCE", "true")
    assert sglang_bypass.standing(Made(), (0, 5, 23)) == ["FlashInfer's all-reduce over PCIe"]


@pytest.mark.parametrize(
    ("release", "arguments", "names"),
    [
        (16, {"flashinfer_allreduce_fusion_backend": None, "enable_mscclpp": False}, []),
        (13, {"enable_flashinfer_allreduce_fusion": True}, ["FlashInfer"]),
        (16, {"flashinfer_allreduce_fusion_backend": "auto"}, ["FlashInfer"]),
        (13, {"enable_symm_mem": True, "enable_mscclpp": True}, ["NCCL's symmetric"]),
        (18, {"enable_symm_mem": True, "enable_mscclpp": True}, ["NCCL's symmetric", "mscclpp"]),
        (19, {"enable_symm_mem": True, "enable_mscclpp": True}, ["mscclpp"]),
    ],
)
def test_what_sglang_asks_first(
    release: int, arguments: dict[str, object], names: list[str]
) -> None:
    told = [str(way) for way in sglang_bypass.found(Made(**arguments), (0, 5, release))]
    assert [name for name, line in zip(names, told, strict=True) if not line.startswith(name)] == []


def test_what_sglang_has_settled_counts_where_its_arguments_do_not_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, comm = Made(), Made(flashinfer_allreduce_fusion_backend="auto")
    context = Made(get_exec=lambda: Made(comm=comm))
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)
    assert sglang_bypass.found(given, (0, 5, 20)) == [sglang_bypass.FLASHINFER]
    given = comm
    context.get_exec = lambda: Made(comm=Made(flashinfer_allreduce_fusion_backend=None))
    assert sglang_bypass.found(given, (0, 5, 20)) == [], "SGLang has decided otherwise"
    context.get_exec = lambda: Made(comm=Made())  # it says nothing of that
    assert sglang_bypass.found(given, (0, 5, 18)) == [sglang_bypass.FLASHINFER]
    not_yet = Made(get_exec=lambda: {}["nobody has settled anything"])
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", not_yet)
    assert sglang_bypass.found(given, (0, 5, 20)) == [sglang_bypass.FLASHINFER]
