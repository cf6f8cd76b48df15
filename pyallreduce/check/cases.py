# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What is checked: sizes, layouts of the tensors, and the data, the same list on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = [
    "DTYPES",
    "SHAPES",
    "Case",
    "Data",
    "Shape",
    "arrange",
    "ladder",
    "shapes_of",
    "special_values",
    "specials",
]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Shape = Literal["plain", "in place", "out given", "unaligned", "unaligned in place", "strided"]
SHAPES: tuple[Shape, ...] = ("unaligned", "unaligned in place", "strided")

_KIB = 1024
# A prime: no chunk or tile is a multiple of it, so that data in the wrong place differs.
_POOL = 262_139
_SEED = 20_261_124


@dataclass(frozen=True)
class Case:
    """One call: `elements` of the data named by `turn`, in tensors laid out as `shape` says."""

    elements: int
    shape: Shape
    turn: int

    def __str__(self) -> str:
        return f"{self.elements} elements, {self.shape}"


def ladder(itemsize: int, capacity: int, quick: bool) -> list[int]:
    """Message sizes in elements: none, odd tails, powers of two and their neighbours, and more than
    the `capacity` bytes that go through the mailboxes at once."""
    tails = [0, 1, 2, 3, 7, 9, 31, 127]
    edges = [1 * _KIB, 8 * _KIB, 64 * _KIB]
    if not quick:
        edges += [2 * _KIB, 4 * _KIB, 16 * _KIB, 32 * _KIB, 128 * _KIB, 512 * _KIB]
    around = [0, 3] if quick else [-1, 0, 1]
    sizes = {edge // itemsize + step for edge in edges for step in around}
    launch = capacity // itemsize
    beyond = {launch, launch + 1} if quick else {launch - 1, launch, launch + 1, 2 * launch + 5}
    return sorted({*tails, *sizes, *beyond})


class Data:
    """Everybody's inputs, which every rank can make: a pool of random values a rank, read from
    different places in turn."""

    def __init__(self, world: int, dtype: torch.dtype, device: torch.device) -> None:
        self._pools = [_pool(rank).to(device, dtype) for rank in range(world)]

    def inputs(self, case: Case) -> list[torch.Tensor]:
        """One contiguous tensor a rank, in rank order."""
        start = case.turn * 7919 % _POOL
        return [
            _cut(pool, start + 101 * rank, case.elements) for rank, pool in enumerate(self._pools)
        ]


def _pool(rank: int) -> torch.Tensor:
    """Values over 16 binary orders of magnitude, so that sums round; made on the CPU, where the
    same seed gives the same numbers whatever the GPU."""
    generator = torch.Generator().manual_seed(_SEED + rank)
    scale = torch.randint(-8, 8, (_POOL,), generator=generator).to(torch.float32)
    return torch.randn(_POOL, generator=generator) * torch.exp2(scale)


def _cut(pool: torch.Tensor, start: int, elements: int) -> torch.Tensor:
    start %= _POOL
    if start + elements <= _POOL:
        return pool[start : start + elements].clone()
    turned = torch.roll(pool, -start)
    return turned.repeat(-(-elements // _POOL))[:elements]


def special_values(dtype: torch.dtype) -> torch.Tensor:
    """Every kind of value that a sum or a mailbox might mistreat, on the CPU.

    The first two are all ones, the mailboxes' sentinel: a NaN in each of the three dtypes.
    """
    info = torch.finfo(dtype)
    integer, ones = (torch.int32, -1) if info.bits == 32 else (torch.int16, -1)
    sentinel = torch.tensor([ones, ones], dtype=integer).view(dtype)
    infinity = float("inf")
    subnormal = info.smallest_normal * info.eps
    rest = [
        *(float("nan"), infinity, -infinity, 0.0, -0.0, 1.0, -1.0),
        *(subnormal, -subnormal, info.smallest_normal - subnormal),
        *(info.smallest_normal, info.max, info.min),
    ]
    # By way of float64: it holds the subnormals of all three exactly.
    return torch.cat([sentinel, torch.tensor(rest, dtype=torch.float64).to(dtype)])


def specials(world: int, dtype: torch.dtype) -> list[tuple[str, list[torch.Tensor]]]:
    """Named inputs of special values, one CPU tensor a rank.

    Neighbours are alike, so that in the 16-bit dtypes too whole 32-bit words equal the sentinel.
    """
    values = special_values(dtype)
    kinds = values.numel()
    at = torch.arange(2 * kinds * kinds + 5) // 2
    ones = torch.ones_like(values[at % kinds])
    pairs = [values[(at // kinds ** (rank % 2) + rank // 2 * at) % kinds] for rank in range(world)]
    named = [("all ranks alike", [values[at % kinds]] * world), ("all pairs", pairs)]
    for special in range(world):
        mixed = [values[at % kinds] if rank == special else ones for rank in range(world)]
        named.append((f"rank {special} alone", mixed))
    return named


def arrange(
    shape: Shape, value: torch.Tensor, call: Callable[..., torch.Tensor]
) -> tuple[torch.Tensor, bool]:
    """Lay `value` out as `shape` says, make the call, and give (result, input still intact)."""
    if shape in ("in place", "unaligned in place"):
        x = _unaligned(value) if shape == "unaligned in place" else value.clone()
        return call(x, out=x), True
    x = {"unaligned": _unaligned, "strided": _strided}.get(shape, torch.clone)(value)
    before = x.clone()
    if shape == "out given":
        out = _unaligned(torch.zeros_like(value))
        result = call(x, out=out)
        return result, _intact(x, before) and result.data_ptr() == out.data_ptr()
    return call(x), _intact(x, before)


def _intact(x: torch.Tensor, before: torch.Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32}[x.element_size()]
    return torch.equal(x.contiguous().view(integer), before.contiguous().view(integer))


def _unaligned(value: torch.Tensor) -> torch.Tensor:
    """The same values one element off the allocator's alignment."""
    base = value.new_empty(value.numel() + 1)
    base[1:] = value
    return base[1:]


def _strided(value: torch.Tensor) -> torch.Tensor:
    """The same values with a gap behind each."""
    base = value.new_zeros(2 * value.numel())
    base[::2] = value
    return base[::2]


def shapes_of(sizes: Sequence[int], shapes: Sequence[Shape], first_turn: int) -> list[Case]:
    """Every size in every shape, each with data of its own."""
    pairs = [(size, shape) for size in sizes for shape in shapes]
    return [Case(size, shape, first_turn + i) for i, (size, shape) in enumerate(pairs)]
