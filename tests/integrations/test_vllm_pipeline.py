# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on the CPU as a pipeline of two stages of two ranks."""

from __future__ import annotations

import os
from typing import Any

import pytest
from engines import CPUS, STOCK, release, run
from processes import ABORT, abort_found, second_plugin, weighted_model

pytestmark = [pytest.mark.slow, pytest.mark.ranks, pytest.mark.timeout(600)]

TOKENS = 12


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two stages of two ranks. Compiled: in eager mode vLLM's CPU build has no pipeline."""
    found = release("0.32.0")
    folder = tmp_path_factory.mktemp("pipeline")
    options = {
        "model": str(weighted_model(folder / "model")),
        "eager": False,
        "tokens": TOKENS,
        "stages": 2,
    }

    def generate(name: str, plugin: str = "", **extra: str) -> tuple[dict[str, Any], str]:
        environment = found.environment(folder / "cache", **extra)
        environment["VLLM_CPU_OMP_THREADS_BIND"] = f"{CPUS}|{CPUS}"
        if plugin:
            environment["PYTHONPATH"] += os.pathsep + second_plugin(folder / name, plugin)
        log = folder / f"{name}.log"
        result = run(found, "vllm_generate.py", options, log, environment, 280)
        return result, log.read_text()

    return generate


def test_a_pipelines_tokens_are_stock_vllms(pipeline: Any) -> None:
    (stock, _), (ours, log) = pipeline("stock", **STOCK), pipeline("ours")
    assert ours["tokens"] == stock["tokens"]
    assert log.count("pyallreduce carries") == 2, "once a stage"
    for rank in ours["after"]:
        assert rank["others"] == 0, "an all-reduce of a stage went round the slot"
        assert rank["stats"]["calls"] > TOKENS
        assert (rank["stats"]["fallbacks"], rank["stats"]["aborts"]) == ({}, 0)


def test_a_stage_that_finds_an_abort_hands_nothing_over(pipeline: Any) -> None:
    """Nobody hears its workers: the last stage answers. They end, and the engine with them."""
    # Found by both ranks of the first stage, when they are about to hand over.
    ended, log = pipeline("aborted", abort_found(8))
    assert set(ended) == {"error"}, "tokens of an aborted stage were returned"
    assert "pyallreduce ends this worker (rank 0)" in log
    assert ABORT in log
