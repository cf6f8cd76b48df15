# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""A mutant: one exact text of one file, what stands there instead, and the test that must fail
then."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mutant"]


@dataclass(frozen=True)
class Mutant:
    """`killer`: a scenario of tests/native/scenarios/, or a test as pytest names it. `quick`: of
    the subset that runs by default."""

    what: str
    path: str
    old: str
    new: str
    killer: str
    quick: bool = False

    @property
    def native(self) -> bool:
        return "::" not in self.killer

    @property
    def test(self) -> str:
        """The killer's name in full."""
        if not self.native:
            return self.killer
        return f"tests/native/test_scenarios.py::test_a_scenario_holds[{self.killer}-plain]"
