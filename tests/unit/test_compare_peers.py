# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Who takes part in `bench --compare`, on which buffers and in which modes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json

import pytest
import torch

from pyallreduce.bench import modes
from pyallreduce.bench.compare_job import Job
from pyallreduce.bench.options import MODES, parse_modes
from pyallreduce.bench.peers import registry
from pyallreduce.bench.peers.base import Arena, Peer, PingPong, Place
from tests.unit.compared import KIB, MIB, PLAN

# ---- who takes part ------------------------------------------------------------------------------


def test_everybody_of_the_device_by_default() -> None:
    on_gpus = [e.name for e in registry.choose([], "cuda")]
    assert on_gpus == [
        *("pyallreduce", "nccl", "nccl_sym", "torch_symm", "vllm", "flashinfer", "sglang"),
    ]
    assert [e.name for e in registry.choose([], "cpu")] == ["pyallreduce", "gloo"]


def test_chosen_by_name() -> None:
    chosen = registry.choose(["sglang:two_shot_pull", "pyallreduce"], "cuda")
    assert [(e.name, e.algorithms) for e in chosen] == [
        ("pyallreduce", ("auto", "one_shot", "two_shot")),
        ("sglang", ("two_shot_pull",)),
    ]
    both = registry.choose(["sglang:two_shot_pull", "sglang"], "cuda")
    assert both[0].algorithms == ("one_shot_push", "two_shot_pull")


@pytest.mark.parametrize("name", ["ncl", "sglang:ring", "", ":"])
def test_an_unknown_name_is_refused_with_the_known(name: str) -> None:
    with pytest.raises(ValueError, match="expected one of pyallreduce, nccl"):
        registry.choose([name], "cuda")


def test_why_missing() -> None:
    by_name = {entry.name: entry for entry in registry.ENTRIES}
    assert registry.why_missing(by_name["vllm"], 3) == "does not serve 3 ranks"
    assert registry.why_missing(by_name["pyallreduce"], 3) == ""
    absent = dataclasses.replace(by_name["sglang"], packages=("no_such_package",))
    assert registry.why_missing(absent, 2) == "not installed (no_such_package)"


@pytest.mark.parametrize("entry", registry.ENTRIES, ids=lambda e: e.name)
def test_every_module_is_what_the_registry_says(entry: registry.Entry) -> None:
    module = importlib.import_module(entry.module)  # imports no backend
    assert list(inspect.signature(module.make).parameters) == ["algorithm", "place"]
    assert hasattr(module, "build") is entry.jit


# ---- buffers and modes ---------------------------------------------------------------------------


def test_cold_buffers_exceed_the_cache_twice() -> None:
    assert modes.buffers_of(KIB, "graph-cold", 200) == 200  # each used once a replay
    for nbytes in (MIB, 8 * MIB, 256 * MIB):
        assert modes.buffers_of(nbytes, "graph-cold", 200) * nbytes > 2 * 50 * MIB
    assert modes.buffers_of(256 * MIB, "graph-cold", 50) == 2
    assert {modes.buffers_of(KIB, mode, 200) for mode in MODES if mode != "graph-cold"} == {1}


def test_place_knows_what_it_will_be_asked_for() -> None:
    place = Place(0, 2, torch.device("cpu"), ((1000, 3), (4096, 1), (MIB, 2)))
    assert place.largest() == MIB
    assert place.largest(5000) == 4096
    assert place.largest(10) == 0
    assert place.arena_bytes() == 2 * MIB
    assert place.arena_bytes(5000) == 4096
    assert place.arena_bytes(1000) == 3 * 1024  # whole lines


def test_views_are_aligned_and_apart() -> None:
    arena = Arena(torch.zeros(4096, dtype=torch.uint8))
    first, second = arena.views(2, 500, torch.bfloat16)
    first.fill_(1)
    assert not bool(second.any())
    assert (second.data_ptr() - first.data_ptr()) % 256 == 0


def test_ping_pong_goes_back_and_forth() -> None:
    class Twice(PingPong):
        def __init__(self, place: Place) -> None:
            super().__init__(place)
            self.pair = tuple(Arena(torch.zeros(1024, dtype=torch.uint8)) for _ in range(2))

        def arenas(self) -> tuple[Arena, Arena]:
            return self.pair[0], self.pair[1]

        def reduce_into(self, x: torch.Tensor, out: torch.Tensor) -> None:
            torch.mul(x, 2, out=out)

    peer = Twice(Place(0, 2, torch.device("cpu"), ((64, 2),)))
    x, other = peer.buffers(2, 16, torch.float32)
    x.fill_(1)
    y = peer.all_reduce(x)
    assert y.data_ptr() not in (x.data_ptr(), other.data_ptr())
    z = peer.all_reduce(y)
    assert z.data_ptr() == x.data_ptr()
    assert float(z[0]) == 4.0


def test_what_a_backend_serves() -> None:
    class Small(Peer):
        limit = 1024
        dtypes = (torch.float32,)

        def buffers(self, count: int, elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
            return [torch.zeros(elements, dtype=dtype) for _ in range(count)]

        def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
            return x

    peer = Small(Place(0, 2, torch.device("cpu"), ((64, 2),)))
    assert peer.serves(1024, torch.float32, "eager")
    assert not peer.serves(1025, torch.float32, "eager")
    assert not peer.serves(64, torch.float16, "eager")
    assert not peer.serves(64, torch.float32, "graph")  # no graphs on the CPU


def test_modes_are_read() -> None:
    assert parse_modes("") == ()
    assert parse_modes("eager, graph") == ("graph", "eager")
    with pytest.raises(ValueError, match="graph-chain"):
        parse_modes("warm")


def test_a_job_survives_the_way_to_the_ranks() -> None:
    (entry,) = registry.choose(["sglang"], "cuda")
    job = PLAN.job(entry, entry.algorithms)
    assert Job.from_json(json.loads(json.dumps(dataclasses.asdict(job)))) == job
    assert list(job.cells()) == [("bfloat16", "eager", 1024), ("bfloat16", "eager", 4096)]
