# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What one rank knows about itself and its machine: plain data, gathered by `topology.probe`.

GPUs are UUIDs, never indices: an index means another GPU under another CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "MAX_LINKS",
    "PROTOCOL_VERSION",
    "Facts",
    "Link",
    "Module",
    "Target",
    "share_a_gpu",
    "short",
]

# Raised with every change of the slab's layout or of what the kernels say to each other:
# csrc/protocol/slab.h.
PROTOCOL_VERSION = 8
# The most links that Facts carry: the other GPUs of the largest machine, with room.
MAX_LINKS = 16

Target = Literal["cuda", "host"]
Module = Literal["cuda", "host", "missing", "broken"]


@dataclass(frozen=True)
class Link:
    """The path from this rank's GPU to another one, as the driver reports it.

    `access`: peer reads and writes are both granted. `nvlink`: active NVLinks that lead there, 1
    if only their presence is known, 0 without. `error`: what NVML said if it could not answer;
    the other two fields then say nothing.
    """

    peer_uuid: str
    access: bool
    nvlink: int
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """One rank's answers. Empty texts and zeros stand for what does not apply or is unknown.

    `driver_cuda` and `build_cuda` are CUDART_VERSION numbers (13000 for 13.0), `capability` is 90
    for 9.0, `pid_namespace` an inode, `backend` the requested one, `links` go to every other GPU
    that NVML sees here, `error` collects what the probe could not read.
    """

    rank: int
    world: int
    target: Target
    module: Module
    protocol: int
    boot_id: str
    pid: int
    pid_namespace: int
    gpu_uuid: str
    gpu_name: str
    bus_id: str
    capability: int
    sm_count: int
    driver_cuda: int
    build_cuda: int
    has_kernel: bool
    mig: bool
    confidential: bool
    wsl: bool
    nccl_p2p_disabled: bool
    backend: str
    config_digest: bytes
    share_gpu: bool
    links: tuple[Link, ...]
    error: str

    def link_to(self, gpu_uuid: str) -> Link | None:
        """The link to that GPU, or None where NVML does not list it on this rank."""
        return next((link for link in self.links if link.peer_uuid == gpu_uuid), None)

    def __str__(self) -> str:
        gpu = f" ({short(self.gpu_uuid)})" if self.gpu_uuid else ""
        return f"rank {self.rank}{gpu}"


def share_a_gpu(group: Iterable[Facts]) -> bool:
    """Whether two ranks are known to use one GPU: one that is not known may be any."""
    known = [f.gpu_uuid for f in group if f.gpu_uuid]
    return len(set(known)) < len(known)


def short(gpu_uuid: str) -> str:
    """A UUID's kind and first group: "GPU-1a2b3c4d"."""
    return "-".join(gpu_uuid.split("-")[:2])
