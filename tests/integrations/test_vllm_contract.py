# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The slot in each release's own CudaCommunicator: contract, dispatch, veto, unknown releases.

Two ranks on the CPU, so no GPU is needed: of each release only the Python files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_targets import VETOES
from engines import release

from pyallreduce.integrations.contract import VLLM_CPU, VLLM_CUDA, problems
from pyallreduce.launch import Placement, launch

VERSIONS = ("0.20.2", "0.26.0", "0.27.1", "0.30.0", "0.32.0", "0.33.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_source_keeps_the_contract(version: str) -> None:
    found = release(version)
    assert problems(VLLM_CUDA, version, found.package) == []
    assert problems(VLLM_CPU, version, found.package) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_steps_answer_comes_from_the_rank_that_we_take_for_it(version: str) -> None:
    source = (release(version).package / "v1/executor/multiproc_executor.py").read_text("utf-8")
    body = source.split("def _get_output_rank(self) -> int:")[1].split("\n    def ")[0]
    code = [line.strip() for line in body.splitlines() if line.strip()[:1] not in ("", "#")]
    assert "".join(code).startswith(
        "return (self.world_size- self.parallel_config.tensor_parallel_size"
        "* self.parallel_config.prefill_context_parallel_size)"
    )


@pytest.fixture(scope="class", params=VERSIONS)
def ranks(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """What each of two ranks saw with this release on its path."""
    found = release(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        if found.folder:
            patch.syspath_prepend(found.folder)
        for name, value in found.environment(Path("unused")).items():
            if name.startswith("VLLM_"):
                patch.setenv(name, value)
        patch.delenv("NCCL_P2P_DISABLE", raising=False)
        yield launch("contract_targets:everything", {}, Placement(2, 0), deadline_s=280)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(300)
class TestCudaCommunicator:
    def test_takes_ours_into_its_slot(self, ranks: list[Any]) -> None:
        for rank, found in enumerate(r["slot"] for r in ranks):
            assert found["ours"], found
            assert found["sum"]
            assert found["input"], "the input was changed, or returned"
            assert found["calls"] == [1, 3]
            assert found["falls through"] == [2, 4, 1]
            assert found["declines"] == [None, None]
            assert found["multicast"] == 0
            assert found["restored"], "vLLM's own class was not put back"
            assert found["destroyed"] == [None, True, False]
            said = [line for line in found["told"] if "pyallreduce carries" in line]
            assert len(said) == (1 if rank == 0 else 0), found["told"]

    def test_leaves_other_groups_and_a_switched_off_one_alone(self, ranks: list[Any]) -> None:
        for rank, found in enumerate(r["not ours"] for r in ranks):
            assert found["other"]
            assert found["off"]
            if rank != 0:
                assert found["told"] == found["void"] == found["context parallel"] == []
                continue
            off = "Group 'tp:0': custom all-reduce is switched off: not ours either"
            void = "(PYALLREDUCE_BACKEND=native and PYALLREDUCE_VLLM_EXCLUSIVE=1 without effect)"
            assert found["told"] == [f"INFO {off}"]
            assert found["void"] == [f"WARNING {off} {void}"]
            (line,) = found["context parallel"]
            assert line.startswith(
                "WARNING Group 'tp:0': vLLM's own all-reduces stay: with prefill"
            )

    @pytest.mark.parametrize("code", VETOES)
    def test_goes_on_without_us_after_a_veto(self, ranks: list[Any], code: str) -> None:
        """With vLLM's symmetric memory behind the slot, but not where peer-to-peer is broken."""
        broken = code in ("P2P_WRITE_LOST", "NCCL_P2P_DISABLED")
        level = "INFO" if code == "FORCED_NCCL" else "WARNING"
        carrier = "NCCL with NCCL_P2P_DISABLE=1 carries"
        others = "vLLM's symmetric memory and NCCL carry"
        for rank, found in enumerate(r["vetoed"][code] for r in ranks):
            assert found["slot"] is None
            assert found["nccl"] == ("1" if broken else None)
            assert found["symmetric"] == (None if broken else 1)
            assert found["sum"] == [2.0] * 5
            assert found["flag"] is True, "the flag of vLLM was not put back"
            assert len(found["told"]) == (1 if rank == 0 else 0), found["told"]
            for line in found["told"]:
                who = carrier if broken else others
                assert line.startswith(f"{level} Group 'tp:0': {who} the all-reduces. {code}: ")
                assert ("iommu=pt" in line) == (code == "P2P_WRITE_LOST"), "the remedy is missing"
            if broken:
                assert found["again"] == found["told"], "a later group gives another reason"
            for line in found["forced and disabled"]:
                assert line.startswith(f"INFO Group 'tp:0': {carrier} the all-reduces. FORCED_NCCL")
            assert len(found["forced and disabled"]) == (1 if rank == 0 else 0)

    def test_goes_on_where_another_stands_in_the_slot(self, ranks: list[Any]) -> None:
        for rank, found in enumerate(r["displaced"] for r in ranks):
            assert found["closed"] == [True]
            assert found["slot"] == "CustomAllreduce"
            assert found["sum"] == [2.0] * 5
            told = "WARNING Group 'tp:0': vLLM goes on with CustomAllreduce in our place"
            assert found["told"] == ([told] if rank == 0 else [])

    @pytest.mark.parametrize("what", ["0.34.0", "0.19.1", "dev", "contract"])
    def test_of_an_unknown_release_is_untouched(self, ranks: list[Any], what: str) -> None:
        for found in (r["unknown"][what] for r in ranks):
            assert found["untouched"]
            # Once for two calls, in a process that is nobody's child to multiprocessing.
            assert [line.split()[0] for line in found["told"]] == ["WARNING"]
            assert "leaves vLLM as it is" in found["told"][0]
