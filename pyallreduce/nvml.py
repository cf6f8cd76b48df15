# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What NVML says about the GPUs of this machine; it works before CUDA starts, and without torch.

`pynvml` is imported on first use. Functions here raise what NVML raises, except `matrix`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyallreduce.facts import MAX_LINKS, Link

__all__ = ["GpuFacts", "Matrix", "Process", "matrix", "processes", "read_gpu"]

# By number: pynvml's NVML_P2P_CAPS_INDEX_READ is a tuple, by a stray comma.
_P2P_READ, _P2P_WRITE, _P2P_NVLINK = 0, 1, 2
_P2P_OK, _P2P_UNKNOWN = 0, 6
_REMOTE_IS_GPU = 0
_MAX_NVLINKS = 36
_ANCESTORS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_UNREADABLE = "?"


@dataclass(frozen=True)
class GpuFacts:
    """NVML's share of a rank's facts."""

    mig: bool
    confidential: bool
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Matrix:
    """All GPUs of the machine and the paths between them, in the shape of `nvidia-smi topo -m`.

    `cells[i][j]` is the path from GPU i to GPU j in NVML's order: "X" for itself, "NV18" for 18
    NVLinks, else PIX, PXB, PHB, NODE or SYS, and "?" where NVML does not answer. `error` says why
    there are no GPUs, where NVML itself is missing.
    """

    uuids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ()
    error: str = ""

    def lines(self) -> list[str]:
        """The table as text: a row of headings, then one row for each GPU; empty without GPUs."""
        heads = [f"GPU{index}" for index in range(len(self.uuids))]
        rows = [["", *heads], *([head, *row] for head, row in zip(heads, self.cells, strict=True))]
        width = max((len(cell) for row in rows for cell in row), default=0)
        return ["  ".join(cell.ljust(width) for cell in row).rstrip() for row in rows if heads]


def read_gpu(uuid: str, bus_id: str) -> GpuFacts:
    """MIG mode of one GPU, whether the system is one of confidential computing, and the GPU's links
    to all others, ordered by their UUIDs.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        pynvml.NVMLError: NVML is missing, or does not know the GPU.
    """
    with _session() as nvml:
        handle = _handle(nvml, uuid, bus_id)
        peers = _gpus(nvml)
        peers.pop(nvml.nvmlDeviceGetUUID(handle), None)
        links = [_link(nvml, handle, peer, peers[peer]) for peer in sorted(peers)]
        return GpuFacts(
            mig=_in_mig_mode(nvml, handle),
            confidential=_is_confidential(nvml),
            links=tuple(links[:MAX_LINKS]),
        )


@dataclass(frozen=True)
class Process:
    """A process that computes on a GPU; `name` is empty where this one may not know it."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})" if self.name else f"process {self.pid}"


def processes(uuid: str, bus_id: str) -> tuple[Process, ...]:
    """The processes that compute on one GPU. Their ids are the host's, whatever PID namespace asks.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        pynvml.NVMLError: NVML is missing, or does not know the GPU, or keeps its processes secret.
    """
    with _session() as nvml:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(_handle(nvml, uuid, bus_id))
        return tuple(Process(int(p.pid), _process_name(nvml, p.pid)) for p in running)


def matrix() -> Matrix:
    """The machine's GPUs, whatever CUDA_VISIBLE_DEVICES says. Never raises."""
    try:
        with _session() as nvml:
            gpus = _gpus(nvml)
            handles = list(gpus.values())
            return Matrix(
                uuids=tuple(gpus),
                names=tuple(nvml.nvmlDeviceGetName(handle) for handle in handles),
                cells=tuple(
                    tuple("X" if a is b else _cell(nvml, a, b) for b in handles) for a in handles
                ),
            )
    except Exception as error:
        return Matrix(error=f"NVML: {error}")


@contextlib.contextmanager
def _session() -> Iterator[Any]:
    """pynvml, initialised; NVML counts its users, so that others in the process are undisturbed."""
    nvml: Any = importlib.import_module("pynvml")
    nvml.nvmlInit()
    try:
        yield nvml
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _gpus(nvml: Any) -> dict[str, Any]:
    """Handles of all GPUs by UUID, in NVML's order."""
    gpus: dict[str, Any] = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        # A GPU that fell off the bus does not answer, and is nobody's peer.
        with contextlib.suppress(nvml.NVMLError):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            gpus[nvml.nvmlDeviceGetUUID(handle)] = handle
    return gpus


def _handle(nvml: Any, uuid: str, bus_id: str) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        # CUDA gives a MIG slice a UUID of its own; the PCI address leads to the GPU it is part of.
        return nvml.nvmlDeviceGetHandleByPciBusId(bus_id)


def _process_name(nvml: Any, pid: int) -> str:
    try:
        return str(nvml.nvmlSystemGetProcessName(pid))
    except (nvml.NVMLError, UnicodeDecodeError):
        return ""


def _in_mig_mode(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False  # the GPU does not know MIG


def _is_confidential(nvml: Any) -> bool:
    try:
        return bool(nvml.nvmlSystemGetConfComputeState().ccFeature)
    except nvml.NVMLError:
        return False  # the driver does not know confidential computing


def _link(nvml: Any, handle: Any, uuid: str, peer: Any) -> Link:
    try:
        access = all(_p2p(nvml, handle, peer, index) for index in (_P2P_READ, _P2P_WRITE))
        return Link(peer_uuid=uuid, access=access, nvlink=_nvlinks(nvml, handle, peer))
    except nvml.NVMLError as error:
        return Link(peer_uuid=uuid, access=False, nvlink=0, error=f"NVML: {error}")


def _p2p(nvml: Any, handle: Any, peer: Any, index: int) -> bool:
    status = nvml.nvmlDeviceGetP2PStatus(handle, peer, index)
    if status == _P2P_UNKNOWN:
        raise nvml.NVMLError(nvml.NVML_ERROR_UNKNOWN)
    return bool(status == _P2P_OK)


def _nvlinks(nvml: Any, handle: Any, peer: Any) -> int:
    """Active NVLinks from one GPU that lead to the other, by a switch or directly."""
    if not _p2p(nvml, handle, peer, _P2P_NVLINK):
        return 0
    # NVML has said that there is NVLink: where it hides the single links, that counts as one.
    return max(1, sum(_leads_to(nvml, handle, link, peer) for link in range(_MAX_NVLINKS)))


def _leads_to(nvml: Any, handle: Any, link: int, peer: Any) -> bool:
    try:
        if not nvml.nvmlDeviceGetNvLinkState(handle, link):
            return False
    except nvml.NVMLError:
        return False  # this GPU has fewer links
    try:
        if nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) != _REMOTE_IS_GPU:
            return True  # a switch reaches everybody
        remote = nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId
        return bool(remote == nvml.nvmlDeviceGetPciInfo(peer).busId)
    except nvml.NVMLError:
        return True  # virtual machines hide what is at the other end


def _cell(nvml: Any, handle: Any, peer: Any) -> str:
    with contextlib.suppress(nvml.NVMLError):
        nvlinks = _nvlinks(nvml, handle, peer)
        if nvlinks:
            return f"NV{nvlinks}"
    with contextlib.suppress(nvml.NVMLError):
        level = nvml.nvmlDeviceGetTopologyCommonAncestor(handle, peer)
        return _ANCESTORS.get(level, _UNREADABLE)
    return _UNREADABLE
