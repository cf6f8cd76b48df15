# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What each function of csrc/protocol/memory.h is on the GPU, and the fences at the signatures of
laps, read from their text: what is weakened there is weaker in every test here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tests.litmus.ptx import Event, Scope, Sem, Thread

__all__ = ["HEADER", "Memory", "Operation", "lap_steps"]

HEADER = Path(__file__).parents[2] / "csrc/protocol/memory.h"
_FUNCTION = re.compile(
    r"^PYALLREDUCE_FN [\w ]+?(\w+)\(([^)]*)\) \{(?:\n(.*?)^| (.*?) )\}$", re.M | re.S
)
_PART = re.compile(r'asm volatile\(\s*"([^"]*)"|= (\w+)\(from\)|^  (\w+)\(\);', re.M)


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
        for name, _, body, line in _FUNCTION.findall(gpu):
            found: list[Operation] = []
            for instruction, load, fence in _PART.findall(body or line):
                if called := load or fence:
                    found += self.functions[called]
                elif match := re.match(r"(ld|st|atom|fence)\.(\w+)\.(\w+)", instruction):
                    found.append(Operation(match[1], cast("Any", match[2]), cast("Any", match[3])))
            if found:
                first = self.functions.setdefault(name, tuple(found))
                self.forms_agree &= first == tuple(found)

    def run(self, thread: Thread, name: str, place: str = "", value: int = 0) -> Event:
        """The function's operations in program order; its read, its write, or its fence."""
        result: Event | None = None
        for op in self.functions[name]:
            if op.name == "ld":
                result = thread.ld(place, op.sem, op.scope)
            elif op.name == "st":
                result = thread.st(place, value, op.sem, op.scope)
            elif op.name == "atom":
                result = thread.exchange(place, value, op.sem, op.scope)
            else:
                fence = thread.fence(op.sem, op.scope)
                result = fence if result is None else result
        assert result is not None
        return result


def lap_steps(kind: str) -> tuple[str, ...]:
    """What the signer does, in program order, where two_shot.h has it "send" or "check" a lap's
    signature: that, and "fence_sys"."""
    two_shot, signature = (
        HEADER.with_name(name).read_text(encoding="utf-8") for name in ("two_shot.h", "signature.h")
    )
    called = re.search(rf"signatures\.({kind}\w*)\(block, turn, ", two_shot)
    assert called is not None
    body = re.search(
        rf"PYALLREDUCE_FN void {called[1]}\(.*?\{{\n(.*?)^  \}}", signature, re.M | re.S
    )
    assert body is not None
    return tuple(re.findall(r"\b(send|check|fence_sys)\(", body[1])) or (kind,)
