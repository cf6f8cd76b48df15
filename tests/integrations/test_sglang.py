# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's hooks, on two ranks of the CPU; SGLang itself is not started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyallreduce.launch import Placement, launch

pytestmark = pytest.mark.ranks


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def run(target: str) -> list[Any]:
    return launch(f"sglang_targets:{target}", {}, Placement(2, 0), deadline_s=90)


def test_the_slot_from_its_building_to_its_end() -> None:
    for found in run("lifetime"):
        assert found["how"] == ["around", "before", "before", "before"]
        assert found["ours"]
        assert found["optional"] == [False, False], "SGLang would call what is not there"
        assert found["takes"] == [True, True]
        assert found["waited"] == [True], "checked before the tokens had arrived"
        assert found["closed"]


def test_a_group_is_checked_before_its_nccl_is_built() -> None:
    for rank, found in enumerate(run("before_nccl")):
        assert found["sound"] == [True, True]
        assert found["without"] == [None, 1], "a group without a custom all-reduce was opened"
        assert found["failed"] == [2, True], "what nobody took was left open"
        assert found["broken"] == [None, None, None]
        assert found["nccl"] == [None, None, None, "1", "1"], "NCCL was not told in time"
        if rank:
            assert found["lines"] == []
            continue
        told = [line for line in found["lines"] if "comes first" not in line]
        first = [line for line in found["lines"] if "comes first" in line]
        carries, *vetoes = told
        assert carries.startswith("INFO Group '0,1': pyallreduce carries")
        assert len(vetoes) == 3
        named = "WARNING Group '0,1': mscclpp (leaving out --enable-mscclpp ends that) comes first"
        assert all(line.startswith(named) for line in first)
        assert len(first) == 4, "what goes past us is not told"
        for line in vetoes:  # the later ones give what the first has found, not our own variable
            who = "mscclpp and NCCL with NCCL_P2P_DISABLE=1"
            assert line.startswith(f"WARNING Group '0,1': {who} carry the all-reduces. ")
            assert "P2P_WRITE_LOST" in line


def test_encoders_and_the_cpu_are_left_as_they_are() -> None:
    """An encoder's rank 0 has the plugin, the other ranks have not: ours would wait for them."""
    for found in run("left_alone"):
        assert found == {"encoder": "SGLang's own", "CPU": "SGLang's own"}


def test_a_veto_leaves_the_slot_empty_and_an_unknown_release_alone() -> None:
    for found in run("vetoed"):
        assert found == {"built": None, "unknown": 0, "ROCm": 0}


def test_where_no_fallback_is_to_be_had_the_process_ends() -> None:
    """SGLang takes an Exception for one rank's veto: its peers would wait."""
    for found in run("refused"):
        assert all(text.startswith("pyallreduce ends this process: ") for text in found.values())
        assert "BackendUnavailable: P2P_WRITE_LOST" in found["native"]
        assert "ConfigError: " in found["setting"]
        assert "one_shot" in found["setting"], "the choices are missing"
        assert "ExchangeTimeout: rank 1 is away" in found["absent"]
        assert "MemoryError: of the host" in found["unforeseen"]
