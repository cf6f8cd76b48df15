# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors and arrays as the native path sees them: pointer, elements, dtype, stream.

Torch tensors take the direct way. Anything else with `__cuda_array_interface__` (CuPy, Numba) is
viewed as a torch tensor without a copy, on CuPy's current stream where CuPy made it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pyallreduce.errors import InvalidCall

__all__ = [
    "DTYPE_CODES",
    "address",
    "address_apart",
    "current_stream",
    "has_memory",
    "is_capturing",
    "is_direct",
    "is_foreign",
    "is_lack_of_memory",
    "on_stream",
    "overlap_in_part",
    "overlaps_itself",
    "view",
    "wait_for",
]

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # csrc/protocol/call.h


_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_ALIGNMENT = 16  # bytes


def address(x: object, device_index: int) -> int:
    """The address of a tensor that can be launched as it is, else 0: a plain one (no subclass), on
    this device (-1: the CPU), of a dtype that runs natively, dense, contiguous, aligned to 16
    bytes, not empty, its bytes its own (not to be negated, not a transform's), its gradients not
    recorded."""
    if type(x) not in _PLAIN:
        return 0
    assert isinstance(x, torch.Tensor)
    try:
        if x.get_device() != device_index or not x.is_contiguous() or x.is_neg():
            return 0
        found = x.data_ptr()
    except RuntimeError:  # what has no storage, as of any layout but strided
        return 0
    if found % _ALIGNMENT or x.dtype not in DTYPE_CODES:
        return 0
    return 0 if x.requires_grad and torch.is_grad_enabled() else found


def address_apart(out: Any, x: torch.Tensor, source: int, device_index: int) -> int:
    """The address of `out` where it can take the sum of `x`, which is at `source`, as it is and
    apart from it; else 0."""
    target = address(out, device_index)
    if not target or abs(target - source) < x.nbytes:
        return 0
    return target if out.dtype is x.dtype and out.shape == x.shape else 0


def has_memory(x: torch.Tensor) -> bool:
    """Whether there are bytes where `x` says. A wrapper (DTensor, FakeTensor) says 0; within the
    transforms of torch.func a tensor has no address to say."""
    try:
        return x.data_ptr() != 0 or x.numel() == 0
    except (RuntimeError, ValueError):  # a lazy module's parameter raises the latter
        return False


def is_direct(x: torch.Tensor) -> bool:
    """Whether a kernel can read and write `x` where it is."""
    return x.is_contiguous() and not x.is_neg() and x.data_ptr() % _ALIGNMENT == 0


def is_lack_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that a tensor could not be allocated, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def is_foreign(x: object) -> bool:
    """Whether `x` is a CUDA array of another library."""
    return not isinstance(x, torch.Tensor) and hasattr(x, "__cuda_array_interface__")


def view(x: Any) -> torch.Tensor:
    """A torch tensor over the memory of a CUDA array; no copy.

    bfloat16 has no type string in the interface: a CuPy array of ml_dtypes.bfloat16 is recognised
    by the name of its dtype.

    Raises:
        InvalidCall: `x` is neither a tensor nor a CUDA array that torch can view.
    """
    if isinstance(x, torch.Tensor):
        return x
    if not hasattr(x, "__cuda_array_interface__"):
        message = f"expected a torch tensor or a CUDA array, got {type(x).__name__}"
        raise InvalidCall(message)
    try:
        if str(getattr(x, "dtype", "")) == "bfloat16":
            return torch.as_tensor(x.view("uint16"), device="cuda").view(torch.bfloat16)
        return torch.as_tensor(x, device="cuda")
    except Exception as error:  # another library's, of whatever kind
        message = f"a {_kind(x)} of dtype {getattr(x, 'dtype', '?')}: {error}"
        raise InvalidCall(message) from error


def empty_like(x: Any) -> Any:
    """An uninitialised array of the same library, shape and dtype.

    Raises:
        InvalidCall: that library has no function for it (Numba).
    """
    if isinstance(x, torch.Tensor):
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    library = type(x).__module__.split(".")[0]
    make = getattr(sys.modules.get(library), "empty_like", None)
    if make is None:
        message = f"a {_kind(x)}: {library} has no empty_like to make the result with: pass out="
        raise InvalidCall(message)
    return make(x)


def _kind(x: object) -> str:
    return f"{type(x).__module__}.{type(x).__name__}"


@contextlib.contextmanager
def on_stream(x: object) -> Iterator[None]:
    """Make the current stream of the library that made `x` torch's current stream."""
    cupy = sys.modules.get("cupy")
    if cupy is None or not type(x).__module__.startswith("cupy"):
        yield
        return
    stream = cupy.cuda.get_current_stream()
    device = torch.device("cuda", int(x.device.id))  # type: ignore[attr-defined]
    with torch.cuda.stream(_external(int(stream.ptr), device)):
        yield


def _external(stream: int, device: torch.device) -> torch.cuda.Stream:
    if stream == 0:  # which torch takes for "none given": it would make a new stream
        return torch.cuda.default_stream(device)
    return torch.cuda.ExternalStream(stream, device=device)  # type: ignore[no-untyped-call]


def wait_for(stream: int, earlier: int, device_index: int) -> None:
    """Order what comes next on `stream` behind what is on `earlier` (raw handles)."""
    device = torch.device("cuda", device_index)
    _external(stream, device).wait_stream(_external(earlier, device))


def _public_current_stream(device_index: int) -> int:
    return int(torch.cuda.current_stream(device_index).cuda_stream)


# The raw handle of torch's current stream, by a device's index. Every call asks, so by what
# torch's own compiled code uses, where there is that: it makes no object.
current_stream: Callable[[int], int] = getattr(
    torch._C, "_cuda_getCurrentRawStream", _public_current_stream
)


def is_capturing(device_index: int) -> bool:
    """Whether a graph is being captured on this device's current stream."""
    if torch.cuda.current_device() == device_index:
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device_index):  # torch asks the current device
        return torch.cuda.is_current_stream_capturing()


def overlap_in_part(x: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether the bytes of two tensors intersect without being the same tensor."""
    if x.numel() == 0 or out.numel() == 0:
        return False
    a, b = _extent(x), _extent(out)
    same = x.data_ptr() == out.data_ptr() and x.stride() == out.stride()
    return not same and a[0] < b[1] and b[0] < a[1]


def overlaps_itself(x: torch.Tensor) -> bool:
    """Whether two elements may share memory, as of an expanded tensor: unless each stride leaves
    room for all that the smaller ones reach."""
    if x.is_contiguous() or x.numel() == 0:
        return False
    steps = sorted((step, size) for size, step in zip(x.shape, x.stride(), strict=True) if size > 1)
    reach = 0
    for step, size in steps:
        if step <= reach:
            return True
        reach += step * (size - 1)
    return False


def _extent(x: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()
