# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on the CPU, tensor parallel 2: stock's tokens, and every all-reduce through us."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from engines import STOCK, release, run
from processes import ABORT, abort_found, second_plugin, weighted_model

pytestmark = [pytest.mark.slow, pytest.mark.ranks, pytest.mark.timeout(600)]

TOKENS = 12
PER_FORWARD = 5  # the embedding, and two in each of two layers


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("version", ["0.27.1", "0.30.0", "0.32.0"])
def test_tokens_are_stock_vllms_and_all_come_through_us(
    version: str, mode: str, tmp_path: Path
) -> None:
    found = release(version)
    options = {
        "model": str(weighted_model(tmp_path / "model")),
        "eager": mode == "eager",
        "tokens": TOKENS,
    }

    def generate(name: str, **extra: str) -> dict[str, Any]:
        # One cache for both: a compiled graph of one must never serve the other.
        environment = found.environment(tmp_path / "cache", **extra)
        log = tmp_path / f"{name}.log"
        return {**run(found, "vllm_generate.py", options, log, environment, 280), "log": log}

    stock, ours = generate("stock", **STOCK), generate("ours")
    assert ours["tokens"] == stock["tokens"]
    assert len({word for tokens in ours["tokens"] for word in tokens}) > TOKENS // 2, "too alike"
    assert all(rank["stats"] is None for rank in stock["after"])
    before, after = ours["before"], ours["after"]
    calls = [b["stats"]["calls"] - a["stats"]["calls"] for a, b in zip(before, after, strict=True)]
    # A request that arrives a step later costs a step more.
    forwards, rest = divmod(calls[0], PER_FORWARD)
    assert calls[0] == calls[1]
    assert rest == 0, "a forward pass made another number of calls"
    assert TOKENS <= forwards <= TOKENS + 3, "not every all-reduce came to us"
    for rank in after:
        assert rank["others"] == 0, "an all-reduce of the group went round the slot"
        assert (rank["stats"]["fallbacks"], rank["stats"]["aborts"]) == ({}, 0)
    told = [line for line in ours["log"].read_text().splitlines() if "pyallreduce carries" in line]
    assert len(told) == 1, told
    assert "INFO" in told[0]
    assert "pyallreduce" not in stock["log"].read_text()


def test_an_abort_found_behind_a_step_ends_the_engine_by_name(tmp_path: Path) -> None:
    """Nothing raised in the call itself, as on a GPU: the record alone tells, at the step's end."""
    found = release("0.32.0")
    environment = found.environment(tmp_path / "cache")
    environment["PYTHONPATH"] += os.pathsep + second_plugin(tmp_path / "fault", abort_found(5))
    options = {"model": str(weighted_model(tmp_path / "model")), "eager": True, "tokens": TOKENS}
    log = tmp_path / "log"
    ended = run(found, "vllm_generate.py", options, log, environment, 280)
    assert set(ended) == {"error"}, "tokens of an aborted step were returned"
    assert ABORT in log.read_text()
