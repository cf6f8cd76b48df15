# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Every reason for a decision: one sentence of cause, one command or setting that mends it.

docs/troubleshooting.md is made from this table. The codes travel between ranks by their place in
the enumeration: add new ones at the end, and raise `wire.WIRE_VERSION` when the order changes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Code", "Reason"]


class Code(str, enum.Enum):
    """A stable name for a reason; the value is the name."""

    # The start-up decision.
    OK = "OK"
    FORCED_NCCL = "FORCED_NCCL"
    SINGLE_RANK = "SINGLE_RANK"
    TOO_MANY_RANKS = "TOO_MANY_RANKS"
    SEVERAL_HOSTS = "SEVERAL_HOSTS"
    PID_NAMESPACE = "PID_NAMESPACE"
    DEVICE_MIXED = "DEVICE_MIXED"
    CONFIG_DIVERGED = "CONFIG_DIVERGED"
    PROTOCOL_VERSION = "PROTOCOL_VERSION"
    PROBE_FAILED = "PROBE_FAILED"
    MODULE_MISSING = "MODULE_MISSING"
    MODULE_BROKEN = "MODULE_BROKEN"
    MODULE_WITHOUT_CUDA = "MODULE_WITHOUT_CUDA"
    DRIVER_MISSING = "DRIVER_MISSING"
    DRIVER_TOO_OLD = "DRIVER_TOO_OLD"
    NO_KERNEL = "NO_KERNEL"
    MIG = "MIG"
    WSL = "WSL"
    SHARED_GPU = "SHARED_GPU"
    NCCL_P2P_DISABLED = "NCCL_P2P_DISABLED"
    CONFIDENTIAL_COMPUTING = "CONFIDENTIAL_COMPUTING"
    NO_PEER_ACCESS = "NO_PEER_ACCESS"
    NO_NVLINK = "NO_NVLINK"
    # Sharing the slabs.
    SLAB_MEMORY = "SLAB_MEMORY"
    IPC_EXPORT = "IPC_EXPORT"
    IPC_OPEN = "IPC_OPEN"
    SHARED_PAGE = "SHARED_PAGE"
    HEADER_MISMATCH = "HEADER_MISMATCH"
    STAGE_FAILED = "STAGE_FAILED"
    # One message at run time.
    DTYPE = "DTYPE"
    OP = "OP"
    SIZE_POLICY = "SIZE_POLICY"
    AUTOGRAD = "AUTOGRAD"
    CLOSED = "CLOSED"
    DEVICE = "DEVICE"
    # The live probes.
    P2P_WRITE_LOST = "P2P_WRITE_LOST"
    P2P_PRIVATE_MIRROR = "P2P_PRIVATE_MIRROR"
    P2P_CORRUPT = "P2P_CORRUPT"
    KERNEL_TIMEOUT = "KERNEL_TIMEOUT"
    KERNEL_MISMATCH = "KERNEL_MISMATCH"
    FOREIGN_PROCESS = "FOREIGN_PROCESS"
    PEER_DIED = "PEER_DIED"
    SLAB_SIZE = "SLAB_SIZE"
    # Of one message again: frames and refusals carry a code's place, so that new ones go last.
    ARGUMENT = "ARGUMENT"
    CALL_MEMORY = "CALL_MEMORY"


@dataclass(frozen=True)
class Reason:
    """A code, and where it applies: `detail` names ranks and GPUs, without a closing full stop."""

    code: Code
    detail: str = ""

    @property
    def cause(self) -> str:
        """What is the matter, in one sentence."""
        return _TABLE[self.code][0]

    @property
    def remedy(self) -> str:
        """The one command or setting that mends it."""
        return _TABLE[self.code][1]

    def __str__(self) -> str:
        cause = f"{self.cause[:-1]}: {self.detail}." if self.detail else self.cause
        return f"{self.code.value}: {cause} {self.remedy}"


_TABLE: dict[Code, tuple[str, str]] = {
    Code.OK: (
        "The native all-reduce is in use.",
        "Nothing needs mending.",
    ),
    Code.FORCED_NCCL: (
        "The configuration asks for NCCL.",
        "Unset PYALLREDUCE_BACKEND to let the probe decide.",
    ),
    Code.SINGLE_RANK: (
        "The group has one rank, so that there is nothing to reduce.",
        "Start at least two ranks, for example with --tensor-parallel-size 2.",
    ),
    Code.TOO_MANY_RANKS: (
        "The group has more than 8 ranks, the most that one slab serves.",
        "Use a group of 2 to 8 ranks, for example with --tensor-parallel-size 8.",
    ),
    Code.SEVERAL_HOSTS: (
        "The ranks run on more than one host.",
        "Keep the group within one host, for example with --pipeline-parallel-size across hosts.",
    ),
    Code.PID_NAMESPACE: (
        "The ranks run in different PID namespaces and cannot open each other's memory.",
        "Start all ranks in one container, or each container with --pid=host.",
    ),
    Code.DEVICE_MIXED: (
        "Some ranks use a GPU and others the CPU.",
        "Pass the same device type to Communicator on every rank.",
    ),
    Code.CONFIG_DIVERGED: (
        "The ranks were started with different settings.",
        "Set the same PYALLREDUCE_* variables on every rank: compare `pyallreduce info` there.",
    ),
    Code.PROTOCOL_VERSION: (
        "The ranks run different versions of pyallreduce.",
        "Install the same version for every rank: pip install --force-reinstall pyallreduce.",
    ),
    Code.PROBE_FAILED: (
        "A rank could not find out what its machine supports.",
        "Run `pyallreduce info` on that rank and mend the error that it prints.",
    ),
    Code.MODULE_MISSING: (
        "The native extension was not built.",
        "Reinstall where a C++ compiler is found: pip install --no-binary pyallreduce pyallreduce.",
    ),
    Code.MODULE_BROKEN: (
        "The native extension is there but does not load.",
        "Reinstall for this Python: pip install --force-reinstall pyallreduce.",
    ),
    Code.MODULE_WITHOUT_CUDA: (
        "The native extension was built without CUDA.",
        "Reinstall with nvcc on the PATH and PYALLREDUCE_CUDA=ON.",
    ),
    Code.DRIVER_MISSING: (
        "No NVIDIA driver answers.",
        "Install the driver, or start the container with --gpus all; `nvidia-smi` must work.",
    ),
    Code.DRIVER_TOO_OLD: (
        "The NVIDIA driver is older than the CUDA version that the extension was built with.",
        "Update the driver, or rebuild with the CUDA version that `nvidia-smi` shows.",
    ),
    Code.NO_KERNEL: (
        "The extension carries no code for this GPU.",
        "Rebuild on this machine: PYALLREDUCE_CUDA=ON pip install --no-binary pyallreduce "
        "pyallreduce.",
    ),
    Code.MIG: (
        "The GPU is in MIG mode, which has no peer-to-peer path.",
        "Turn MIG off as an administrator: nvidia-smi -mig 0.",
    ),
    Code.WSL: (
        "CUDA memory cannot be shared between processes under WSL.",
        "Run on Linux itself; under WSL set PYALLREDUCE_BACKEND=nccl to silence this.",
    ),
    Code.SHARED_GPU: (
        "Two ranks use one GPU and would wait for each other's kernels.",
        "Give each rank a GPU of its own with CUDA_VISIBLE_DEVICES or torch.cuda.set_device.",
    ),
    Code.NCCL_P2P_DISABLED: (
        "NCCL_P2P_DISABLE is set, which says that peer-to-peer does not work here.",
        "Unset NCCL_P2P_DISABLE if peer-to-peer is sound on this machine.",
    ),
    Code.CONFIDENTIAL_COMPUTING: (
        "Confidential computing is on, and keeps two GPUs of the group from each other's memory.",
        "Choose a mode of it that allows peer-to-peer between GPUs, or turn it off; with "
        "PYALLREDUCE_BACKEND=nccl this is silent.",
    ),
    Code.NO_PEER_ACCESS: (
        "The driver grants no peer access between two of the GPUs.",
        "Choose GPUs that reach each other: `nvidia-smi topo -p2p rw` shows OK for them.",
    ),
    Code.NO_NVLINK: (
        "More than two GPUs take part and a pair of them has no NVLink.",
        "Choose GPUs that are all joined by NVLink: `nvidia-smi topo -m` shows NV for them.",
    ),
    Code.SLAB_MEMORY: (
        "The memory to share could not be allocated.",
        "Leave room for PYALLREDUCE_SLAB_BYTES, for example with a lower --gpu-memory-utilization.",
    ),
    Code.SLAB_SIZE: (
        "PYALLREDUCE_SLAB_BYTES leaves no room for a mailbox of every rank.",
        "Raise PYALLREDUCE_SLAB_BYTES, or unset it for the default of 64M.",
    ),
    Code.IPC_EXPORT: (
        "CUDA refused to export the slab to other processes.",
        "Allow CUDA IPC: start the container with --ipc=host.",
    ),
    Code.IPC_OPEN: (
        "CUDA refused to open a peer's slab.",
        "Allow CUDA IPC: make all GPUs of the group visible to every rank and use --ipc=host.",
    ),
    Code.SHARED_PAGE: (
        "A peer's shared memory could not be opened through /proc.",
        "Run all ranks as one user in one container, with --cap-add=SYS_PTRACE if need be.",
    ),
    Code.HEADER_MISMATCH: (
        "A peer's slab does not show the header that the peer wrote.",
        "Set PYALLREDUCE_BACKEND=nccl and report the output of `pyallreduce info`.",
    ),
    Code.STAGE_FAILED: (
        "A step of the start-up exchange failed on a rank.",
        "Read that rank's log above this line, then run `pyallreduce check`.",
    ),
    Code.DTYPE: (
        "The tensor's dtype has no native kernel.",
        "Pass float32, float16 or bfloat16 to use the native path.",
    ),
    Code.OP: (
        "The operation has no native kernel.",
        'Pass op="sum" to use the native path.',
    ),
    Code.SIZE_POLICY: (
        "The agreed table gives messages of this size to NCCL.",
        "Measure this machine with `pyallreduce tune` to change the table.",
    ),
    Code.AUTOGRAD: (
        "The tensor requires gradients, which the native path does not carry.",
        "Call under torch.no_grad() or torch.inference_mode().",
    ),
    Code.CLOSED: (
        "The communicator is closed.",
        "Make a new Communicator.",
    ),
    Code.DEVICE: (
        "The tensor is on another device than the communicator.",
        "Pass a tensor on the device that the Communicator was made for.",
    ),
    Code.P2P_WRITE_LOST: (
        "Writes from one GPU to another do not arrive.",
        "Boot with iommu=pt or turn off PCIe ACS redirection; until then NCCL too needs "
        "NCCL_P2P_DISABLE=1.",
    ),
    Code.P2P_PRIVATE_MIRROR: (
        "Writes to a peer's memory are seen by the writer alone.",
        "Set NCCL_P2P_DISABLE=1, which NCCL needs as well: this virtual machine passes "
        "peer-to-peer through wrongly.",
    ),
    Code.P2P_CORRUPT: (
        "Writes from one GPU to another arrive with wrong bytes.",
        "Set NCCL_P2P_DISABLE=1, which NCCL needs as well: peer-to-peer of this board or driver "
        "cannot be trusted.",
    ),
    Code.KERNEL_TIMEOUT: (
        "A kernel of the start-up check did not end before its deadline.",
        "Run `pyallreduce check` on the idle machine to find the pair of GPUs.",
    ),
    Code.KERNEL_MISMATCH: (
        "A kernel of the start-up check gave a wrong sum.",
        "Set PYALLREDUCE_BACKEND=nccl and report the output of `pyallreduce check`.",
    ),
    Code.FOREIGN_PROCESS: (
        "Another process computes on a GPU of the group and may hold up its kernels.",
        "Find it with `nvidia-smi` and end it, or choose other GPUs.",
    ),
    Code.PEER_DIED: (
        "A rank's process has ended.",
        "Look for its last words in its log, and for the OOM killer with `dmesg`.",
    ),
    Code.ARGUMENT: (
        "An argument of the call is one that no backend takes.",
        "Read that rank's InvalidCall, which says what is accepted.",
    ),
    Code.CALL_MEMORY: (
        "A rank had no memory for the call's result, or for a copy of a strided tensor.",
        "Free memory on that rank's device, or pass out= and contiguous tensors.",
    ),
}
