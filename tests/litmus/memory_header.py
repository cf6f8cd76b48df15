# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What each function of csrc/protocol/memory.h is on the GPU, read from its text: what is weakened
there is weaker in every test here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tests.litmus.ptx import Event, Scope, Sem, Thread

__all__ = ["HEADER", "Memory", "Operation"]

HEADER = Path(__file__).parents[2] / "csrc/protocol/memory.h"
_FUNCTION = re.compile(r"^PYALLREDUCE_FN [\w ]+?(\w+)\(([^)]*)\) \{\n(.*?)^\}", re.M | re.S)
_PART = re.compile(r'asm volatile\(\s*"([^"]*)"|= (\w+)\(from\)')


@dataclass(frozen=True)
class Operation:
    """One instruction: "ld", "st", "atom" or "fence"."""

    name: str
    sem: Sem
    scope: Scope


class Memory:
    """The functions by name; a thread runs them on the word that a test names."""

    def __init__(self, text: str | None = None) -> None:
        gpu = (HEADER.read_text(encoding="utf-8") if text is None else text).split("#else")[0]
        self.functions: dict[str, tuple[Operation, ...]] = {}
        self.forms_agree = True  # those for a word and for a vector differ in width alone
        self.waits_for_the_grid_before = '"griddepcontrol.wait;"' in gpu
        for name, _, body in _FUNCTION.findall(gpu):
            found: list[Operation] = []
            for instruction, called in _PART.findall(body):
                if called:
                    found += self.functions[called]
                elif match := re.match(r"(ld|st|atom|fence)\.(\w+)\.(\w+)", instruction):
                    found.append(Operation(match[1], cast("Any", match[2]), cast("Any", match[3])))
            if found:
                first = self.functions.setdefault(name, tuple(found))
                self.forms_agree &= first == tuple(found)

    def run(self, thread: Thread, name: str, place: str, value: int = 0) -> Event:
        """The function's operations in program order; its read, or its write."""
        result: Event | None = None
        for op in self.functions[name]:
            if op.name == "ld":
                result = thread.ld(place, op.sem, op.scope)
            elif op.name == "st":
                result = thread.st(place, value, op.sem, op.scope)
            elif op.name == "atom":
                result = thread.exchange(place, value, op.sem, op.scope)
            else:
                thread.fence(op.sem, op.scope)
        assert result is not None
        return result
