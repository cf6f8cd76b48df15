# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What a ping-pong found of the edges between this rank and a peer."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Edge"]


@dataclass(frozen=True)
class Edge:
    """What the ping-pong with `peer` found: csrc/protocol/edges.h.

    `state` is 1 where all rounds came back, 2 where nothing more came, 3 where something else
    came; `rounds` arrived here, `nanoseconds` went by; `read_back` says that this rank's last
    write stands in the peer's memory as this rank sees it.
    """

    peer: int
    state: int
    rounds: int
    nanoseconds: int
    read_back: bool

    @property
    def round_us(self) -> float:
        """The time of a round; infinite if the edge is not sound."""
        return self.nanoseconds / self.rounds / 1e3 if self.state == 1 else math.inf
