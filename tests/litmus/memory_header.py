# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What each function of csrc/protocol/memory.h is on the GPU, and what orders the signatures of
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
_ASM = re.compile(r'asm volatile\(\s*"(ld|st|atom|fence)\.(\w+)\.(\w+)')


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
        wait = "setp.ne.u32 known, %0, 0; @known griddepcontrol.wait;"
        self.waits_for_the_grid_before = wait in gpu
        for name, _, body, line in _FUNCTION.findall(gpu):
            if found := [Operation(*cast("Any", part)) for part in _ASM.findall(body or line)]:
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


def lap_steps() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the signer does with a lap's signature, in program order: when it sends it, "send" and
    the fence; when it checks it, the loads of a call that has laps."""
    two_shot, signature = (
        HEADER.with_name(name).read_text(encoding="utf-8") for name in ("two_shot.h", "signature.h")
    )

    def found(function: str, wanted: str) -> tuple[str, ...]:
        body = re.search(
            rf"PYALLREDUCE_FN void {function}\(.*?\{{\n(.*?)^  \}}", signature, re.M | re.S
        )
        assert body is not None
        return tuple(dict.fromkeys(re.findall(wanted, body[1], re.M)))

    called = re.search(r"signatures_\.(send\w*)\(block_, turn_, ", two_shot)
    assert called is not None
    sends = found(called[1], r"\b(send|fence_sys)\(") or ("send",)
    # A statement of its own, or behind the one condition that is known to hold.
    loads = r"^ +(?:if \(turn\.call\.laps > 1\) )?(?:Words )?theirs = (ld_\w+_sys)\("
    return sends, found("compare", loads)
