# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The least time that an all-reduce can take on H100s with NVLink and no multicast.

A launch in a graph, one one-way store a hop, and the bytes that a GPU must send over its links. The
constants were measured on 4 H100s: an empty kernel node, a store seen by a polling peer, and what
the SMs push to peers with all GPUs pushing at once.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["algorithm_floor_us", "floor_us"]

_NODE_US = 0.8
_HOP_US = 0.84
_BYTES_PER_US = 365e3  # 365 GB/s


def algorithm_floor_us(
    nbytes: int, world: int, algorithm: Literal["one_shot", "two_shot"]
) -> float:
    """The floor of one algorithm, µs."""
    hops, wire = (1, world - 1) if algorithm == "one_shot" else (2, 2 * (world - 1) / world)
    return _NODE_US + _HOP_US * hops + wire * nbytes / _BYTES_PER_US


def floor_us(nbytes: int, world: int) -> float:
    """The smaller of the two algorithms' floors, µs."""
    return min(
        algorithm_floor_us(nbytes, world, "one_shot"), algorithm_floor_us(nbytes, world, "two_shot")
    )
