# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How long a wait may last now: ranks may be far apart at first, and are together later."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from pyallreduce import arrays
from pyallreduce.config import Config

if TYPE_CHECKING:
    from pyallreduce.facts import Target
    from pyallreduce.slab import Slabs

__all__ = ["Patience"]


class Patience:
    """The deadline that is in force in this rank's record page.

    That of the start-up until the ranks are settled, which is when an eager call of all of them has
    ended or somebody says so; then the usual one.

    Args:
        device: CUDA device index; ignored on the host target.
    """

    def __init__(self, slabs: Slabs, config: Config, target: Target, device: int) -> None:
        self._slabs = slabs
        self._config = config
        self._on_host = target == "host"
        self._device = device
        self._asked = 0  # contexts that ask for patience
        self.settled = True  # as long as the start-up's deadline is in force
        self._calls = 0
        self._first_call: Any = None  # an event behind it; torch's stubs do not type events

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        """Within, ranks may be far apart: the deadline is `Config.patient_ms`."""
        self._asked += 1
        self.begin()
        try:
            yield
        finally:
            self._asked -= 1

    def begin(self) -> None:
        """From here until the next eager call has ended, the deadline is `Config.patient_ms`."""
        # In this order: whoever settles meanwhile leaves either his deadline or "not settled".
        self._slabs.set_deadline(self._config.patient_ms)
        self.settled, self._first_call = False, None

    def settle(self) -> None:
        """The ranks are together: from here on the deadline is `Config.timeout_ms`, except within
        `within()`. Engines say so in every step."""
        if self._asked or self.settled:
            return
        self.settled, self._first_call = True, None
        self._slabs.set_deadline(self._config.timeout_ms)

    def prove(self) -> None:
        """From here on the deadline is that of the live checks, `Config.proof_ms`."""
        self.settled = True
        self._slabs.set_deadline(self._config.proof_ms)

    def settle_behind_a_call(self) -> None:
        """Behind a launch while the ranks are not settled: once an eager call has ended, they are
        together."""
        self._calls += 1
        if self._on_host:
            self.settle()
            return
        if arrays.is_capturing(self._device):
            return
        first = self._first_call  # another thread, which checks a step, may settle meanwhile
        if first is None:
            first = torch.cuda.Event()  # type: ignore[no-untyped-call]
            first.record(torch.cuda.current_stream(self._device))
            self._first_call = first
        elif first.query():
            self.settle()

    def settle_behind_a_check(self) -> None:
        """Behind a check that found nothing wrong: if there was a call, it has ended."""
        if self._calls:
            self.settle()

    def forget_calls(self) -> None:
        """For a new generation: a call that was refused settles nothing."""
        self._calls, self._first_call = 0, None

    @property
    def deadline_ms(self) -> int:
        """What a new generation begins with, and the longest that a call of now may wait. A refusal
        ends no patience: the ranks are as far apart as before."""
        patient = self._asked or not self.settled
        return self._config.patient_ms if patient else self._config.timeout_ms
