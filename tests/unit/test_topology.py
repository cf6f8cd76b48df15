# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N802, ARG002 - the fake has the names and arguments of NVML
"""probe() on machines that are not here: a fake NVML, a fake extension, a fake /proc."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyallreduce import topology
from pyallreduce.config import Config
from pyallreduce.facts import MAX_LINKS, Link
from pyallreduce.topology import Facts, matrix, probe

CONFIG = Config()
CPU = torch.device("cpu")
GPU = torch.device("cuda", 1)
OK, NOT_SUPPORTED, UNKNOWN = 0, 5, 6
SWITCH, TO_GPU = 2, 0


class NVMLError(Exception):
    """Stands for pynvml.NVMLError; the real one maps numbers to words."""


def uuid(index: int) -> str:
    return f"GPU-{index:08x}-0000-0000-0000-000000000000"


@dataclass
class FakeNvml(ModuleType):
    """The part of pynvml that is used, for `count` GPUs with `nvlinks` links each to a switch."""

    count: int = 2
    nvlinks: int = 18
    p2p: dict[tuple[int, int, int], int] = field(default_factory=dict)
    remote: dict[tuple[int, int], int] = field(default_factory=dict)
    mig: bool = False
    confidential: bool = False
    lost: frozenset[int] = frozenset()
    ancestor: int = 50
    failing: frozenset[str] = frozenset()
    sessions: int = 0
    NVMLError = NVMLError
    NVML_ERROR_UNKNOWN = 999

    def __post_init__(self) -> None:
        super().__init__("pynvml")

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in super().__getattribute__("failing"):
            raise NVMLError(f"{name} failed")
        return super().__getattribute__(name)

    def nvmlInit(self) -> None:
        self.sessions += 1

    def nvmlShutdown(self) -> None:
        self.sessions -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.lost:
            raise NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetHandleByUUID(self, text: str) -> int:
        for index in range(self.count):
            if uuid(index) == text:
                return index
        raise NVMLError("Not Found")

    def nvmlDeviceGetHandleByPciBusId(self, text: str) -> int:
        return int(text.split(":")[1], 16)

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return uuid(handle)

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"Fake {handle}"

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        return [int(self.mig), 0]

    def nvmlSystemGetConfComputeState(self) -> Any:
        return SimpleNamespace(environment=2, ccFeature=int(self.confidential), devToolsMode=0)

    def nvmlDeviceGetP2PStatus(self, a: int, b: int, index: int) -> int:
        return self.p2p.get((a, b, index), OK)

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:
        if link >= self.nvlinks:
            raise NVMLError("Invalid Argument")
        return 1

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: int, link: int) -> int:
        return TO_GPU if (handle, link) in self.remote else SWITCH

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: int, link: int) -> Any:
        return self.nvmlDeviceGetPciInfo(self.remote[handle, link])

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        return SimpleNamespace(busId=f"0000:{handle:02x}:00.0")

    def nvmlDeviceGetTopologyCommonAncestor(self, a: int, b: int) -> int:
        return self.ancestor


def device_info(index: int) -> Any:
    return SimpleNamespace(
        uuid=uuid(index),
        name="NVIDIA H100 80GB HBM3",
        pci_bus_id=f"0000:{index:02x}:00.0",
        capability=90,
        sm_count=132,
        has_kernel=True,
    )


@dataclass
class FakeNative:
    """The part of `_native` and of the module `_C` that is used."""

    status: str = "cuda"
    detail: str = ""
    cuda_version: int = 13000
    driver: int = 13010

    def state(self) -> Any:
        return SimpleNamespace(status=self.status, detail=self.detail)

    def load(self) -> Any:
        return SimpleNamespace(
            cuda_version=self.cuda_version,
            driver_cuda_version=lambda: self.driver,
            device_info=device_info,
        )


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> FakeNative:
    fake = FakeNative()
    monkeypatch.setattr(topology, "_native", fake)
    return fake


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setattr(topology, "_native", FakeNative())
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty /proc."""
    monkeypatch.setattr(topology, "_PROC", tmp_path)
    return tmp_path


def link(facts: Facts, index: int) -> Link:
    found = facts.link_to(uuid(index))
    assert found is not None
    return found


def test_a_gpu_rank(nvml: FakeNvml) -> None:
    facts = probe(1, 2, GPU, CONFIG)
    assert facts.error == ""
    assert (facts.rank, facts.world, facts.target, facts.module) == (1, 2, "cuda", "cuda")
    assert (facts.gpu_uuid, facts.bus_id) == (uuid(1), "0000:01:00.0")
    assert (facts.capability, facts.sm_count, facts.has_kernel) == (90, 132, True)
    assert (facts.driver_cuda, facts.build_cuda) == (13010, 13000)
    assert (facts.backend, facts.share_gpu) == (CONFIG.backend, CONFIG.share_gpu)
    assert facts.config_digest == CONFIG.digest()
    assert facts.pid == os.getpid()
    assert facts.pid_namespace == Path("/proc/self/ns/pid").stat().st_ino
    assert facts.boot_id
    assert facts.links == (Link(uuid(0), access=True, nvlink=18),)
    assert nvml.sessions == 0


@pytest.mark.parametrize("device", [CPU, None], ids=str)
def test_a_host_rank_touches_no_gpu(
    device: torch.device | None, native: FakeNative, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    native.status = "host"
    facts = probe(0, 2, device, CONFIG)
    assert (facts.target, facts.module, facts.error) == ("host", "host", "")
    assert (facts.gpu_uuid, facts.links, facts.driver_cuda) == ("", (), 0)


@pytest.mark.usefixtures("nvml")
def test_a_device_without_index_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert probe(0, 2, torch.device("cuda"), CONFIG).gpu_uuid == uuid(0)


@pytest.mark.parametrize(
    ("status", "detail"), [("missing", "not built"), ("broken", "libfoo.so: not found")]
)
def test_without_the_module(native: FakeNative, status: str, detail: str) -> None:
    native.status, native.detail = status, detail
    facts = probe(0, 2, GPU, CONFIG)
    assert (facts.module, facts.error) == (status, detail)


@pytest.mark.usefixtures("native")
def test_without_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    facts = probe(0, 2, GPU, CONFIG)
    assert facts.gpu_uuid == uuid(1)
    assert facts.links == ()
    assert facts.error.startswith("NVML: ")


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetCount"])
def test_with_an_nvml_that_fails(nvml: FakeNvml, name: str) -> None:
    nvml.failing = frozenset({name})
    facts = probe(0, 2, GPU, CONFIG)
    assert facts.error == f"NVML: {name} failed"
    assert (facts.gpu_uuid, facts.links) == (uuid(1), ())
    assert nvml.sessions == 0


def test_a_link_that_cannot_be_read_says_so(nvml: FakeNvml) -> None:
    nvml.failing = frozenset({"nvmlDeviceGetP2PStatus"})
    facts = probe(0, 2, GPU, CONFIG)
    assert facts.error == ""
    assert link(facts, 0).error == "NVML: nvmlDeviceGetP2PStatus failed"
    nvml.failing = frozenset()
    nvml.p2p[1, 0, 0] = UNKNOWN
    assert link(probe(0, 2, GPU, CONFIG), 0).error.startswith("NVML: ")


@pytest.mark.parametrize("capability", [0, 1], ids=["read", "write"])
def test_access_needs_reads_and_writes(nvml: FakeNvml, capability: int) -> None:
    nvml.p2p[1, 0, capability] = NOT_SUPPORTED
    assert link(probe(0, 2, GPU, CONFIG), 0) == Link(uuid(0), access=False, nvlink=18)
    nvml.p2p = {(0, 1, capability): NOT_SUPPORTED}  # the other direction is the other rank's
    assert link(probe(0, 2, GPU, CONFIG), 0).access


def test_counts_only_links_that_lead_there(nvml: FakeNvml) -> None:
    nvml.count, nvml.nvlinks = 4, 4
    nvml.remote = {(1, 0): 0, (1, 1): 0, (1, 2): 2, (1, 3): 2}
    nvml.p2p[1, 3, 2] = NOT_SUPPORTED
    facts = probe(0, 4, GPU, CONFIG)
    assert [link(facts, index).nvlink for index in (0, 2, 3)] == [2, 2, 0]


def test_links_that_nvml_hides_count_as_one(nvml: FakeNvml) -> None:
    nvml.nvlinks = 0
    assert link(probe(0, 2, GPU, CONFIG), 0).nvlink == 1
    nvml.nvlinks, nvml.failing = 18, frozenset({"nvmlDeviceGetNvLinkRemoteDeviceType"})
    assert link(probe(0, 2, GPU, CONFIG), 0).nvlink == 18


def test_a_lost_gpu_is_nobodys_peer(nvml: FakeNvml) -> None:
    nvml.count, nvml.lost = 4, frozenset({2})
    facts = probe(0, 4, GPU, CONFIG)
    assert [each.peer_uuid for each in facts.links] == [uuid(0), uuid(3)]
    assert facts.error == ""


def test_links_fit_a_frame(nvml: FakeNvml) -> None:
    nvml.count = MAX_LINKS + 8
    assert len(probe(0, 2, GPU, CONFIG).links) == MAX_LINKS


def test_a_mig_slice_is_found_by_its_bus(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.mig = True
    whole = device_info
    monkeypatch.setattr(
        sys.modules[__name__],
        "device_info",
        lambda index: SimpleNamespace(**{**vars(whole(index)), "uuid": "GPU-slice"}),
    )
    facts = probe(0, 2, GPU, CONFIG)
    assert (facts.gpu_uuid, facts.mig, facts.error) == ("GPU-slice", True, "")
    assert [each.peer_uuid for each in facts.links] == [uuid(0)]


@pytest.mark.parametrize("on", [False, True])
def test_confidential_computing_is_seen(nvml: FakeNvml, on: bool) -> None:
    nvml.confidential = on
    assert probe(0, 2, GPU, CONFIG).confidential is on


def test_a_driver_that_does_not_know_confidential_computing(nvml: FakeNvml) -> None:
    nvml.failing = frozenset({"nvmlSystemGetConfComputeState"})
    facts = probe(0, 2, GPU, CONFIG)
    assert (facts.confidential, facts.error) == (False, "")


def test_a_gpu_that_does_not_know_mig(nvml: FakeNvml) -> None:
    nvml.failing = frozenset({"nvmlDeviceGetMigMode"})
    facts = probe(0, 2, GPU, CONFIG)
    assert (facts.mig, facts.error) == (False, "")


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("value", "disabled"), [("1", True), ("2", True), ("0", False), ("", False), (None, False)]
)
def test_nccl_p2p_disable(
    monkeypatch: pytest.MonkeyPatch, value: str | None, disabled: bool
) -> None:
    if value is None:
        monkeypatch.delenv("NCCL_P2P_DISABLE", raising=False)
    else:
        monkeypatch.setenv("NCCL_P2P_DISABLE", value)
    assert probe(0, 2, GPU, CONFIG).nccl_p2p_disabled is disabled


@pytest.mark.usefixtures("native")
def test_wsl_by_the_kernels_name(proc: Path) -> None:
    assert not probe(0, 2, CPU, CONFIG).wsl
    (proc / "version").write_text("Linux version 5.15.90.1-microsoft-standard-WSL2")
    assert probe(0, 2, CPU, CONFIG).wsl


@pytest.mark.usefixtures("native")
def test_the_boot_id_has_a_substitute(proc: Path) -> None:
    (proc / "stat").write_text("cpu 1 2\nbtime 1700000000\n")
    assert probe(0, 2, CPU, CONFIG).boot_id.endswith("@1700000000")


@pytest.mark.usefixtures("native", "proc")
def test_an_unreadable_proc_is_told() -> None:
    facts = probe(0, 2, CPU, CONFIG)
    assert (facts.boot_id, facts.pid_namespace) == ("", 0)
    assert "the boot id: " in facts.error
    assert "the PID namespace: " in facts.error


NVML_CALLS = sorted(name for name in vars(FakeNvml) if name.startswith("nvml"))


@given(
    failing=st.sets(st.sampled_from(NVML_CALLS)),
    error=st.sampled_from([NVMLError, RuntimeError, OSError, TypeError, KeyError]),
    native_fails=st.booleans(),
)
def test_probe_and_matrix_never_raise(
    failing: set[str], error: type[Exception], native_fails: bool
) -> None:
    def fail(*_: object) -> Any:
        raise error

    broken = FakeNvml()
    for name in failing:
        object.__setattr__(broken, name, fail)
    native = FakeNative()
    if native_fails:
        object.__setattr__(native, "load", fail)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", broken)
        patch.setattr(topology, "_native", native)
        facts = probe(0, 2, GPU, CONFIG)
        assert isinstance(facts, Facts)
        assert bool(facts.gpu_uuid) is not native_fails
        assert len(matrix().lines()) in {0, 1, 2, 3}


@pytest.mark.usefixtures("proc")
def test_probe_survives_a_native_layer_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_native", SimpleNamespace())
    facts = probe(0, 2, GPU, CONFIG)
    assert facts.module == "broken"
    assert "the native module: " in facts.error


def test_the_matrix_has_the_shape_of_nvidia_smi(nvml: FakeNvml) -> None:
    nvml.count = 3
    nvml.p2p = {(0, 2, 2): NOT_SUPPORTED, (2, 0, 2): NOT_SUPPORTED}
    table = matrix()
    assert table.uuids == (uuid(0), uuid(1), uuid(2))
    assert table.names == ("Fake 0", "Fake 1", "Fake 2")
    assert table.cells == (("X", "NV18", "SYS"), ("NV18", "X", "NV18"), ("SYS", "NV18", "X"))
    assert table.lines() == [
        "      GPU0  GPU1  GPU2",
        "GPU0  X     NV18  SYS",
        "GPU1  NV18  X     NV18",
        "GPU2  SYS   NV18  X",
    ]


@pytest.mark.parametrize(
    ("level", "cell"),
    [(0, "PIX"), (10, "PIX"), (20, "PXB"), (30, "PHB"), (40, "NODE"), (50, "SYS"), (7, "?")],
)
def test_the_matrix_names_the_common_ancestor(nvml: FakeNvml, level: int, cell: str) -> None:
    nvml.ancestor = level
    nvml.failing = frozenset({"nvmlDeviceGetP2PStatus"})
    assert matrix().cells == (("X", cell), (cell, "X"))


def test_the_matrix_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    table = matrix()
    assert (table.uuids, table.cells, table.lines()) == ((), (), [])
    assert table.error.startswith("NVML: ")


def test_the_real_nvml_has_what_is_used() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in NVML_CALLS:
        assert callable(getattr(pynvml, name))
    assert issubclass(pynvml.NVMLError, Exception)
    assert isinstance(matrix().lines(), list)
