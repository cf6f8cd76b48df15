# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Tuned tables: how they come about, and how they are stored and found again."""

from __future__ import annotations

import contextlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from pyallreduce import shipped, tuned
from pyallreduce.bench import tune
from pyallreduce.bench.tune import Choice, Measured, choose, table_of
from pyallreduce.facts import PROTOCOL_VERSION, Facts, Link
from pyallreduce.launch import Placement, Report
from pyallreduce.table import MAX_BYTES, Entry, Table, TableError
from pyallreduce.tuned import FORMAT, Machine, load, machine_of, path_of, save

KIB, MIB = 1 << 10, 1 << 20
H100 = Machine("NVIDIA H100", 2, "NVLink 18", "0.1.0")
TABLE = Table((Entry(KIB, "one_shot", 1, 96), Entry(MAX_BYTES, "nccl")), "tuned")
OTHER = Table((Entry(MAX_BYTES, "two_shot", 64, 480),), "tuned")


def rank_of(rank: int, world: int, nvlink: int = 18, name: str = "NVIDIA H100") -> Facts:
    links = tuple(Link(f"GPU-{r}", access=True, nvlink=nvlink) for r in range(world) if r != rank)
    return Facts(
        rank=rank,
        world=world,
        target="cuda",
        module="cuda",
        protocol=PROTOCOL_VERSION,
        boot_id="boot",
        pid=1 + rank,
        pid_namespace=1,
        gpu_uuid=f"GPU-{rank}",
        gpu_name=name,
        bus_id="",
        capability=90,
        sm_count=132,
        driver_cuda=13000,
        build_cuda=13000,
        has_kernel=True,
        mig=False,
        confidential=False,
        wsl=False,
        nccl_p2p_disabled=False,
        backend="auto",
        config_digest=bytes(8),
        share_gpu=False,
        links=links,
        error="",
    )


# ---- the key -------------------------------------------------------------------------------------


def test_the_key_is_the_same_on_all_ranks() -> None:
    facts = [rank_of(rank, 3) for rank in range(3)]
    assert machine_of(facts) == machine_of(facts[::-1])
    machine = machine_of(facts)
    assert (machine.gpu, machine.world, machine.link) == ("NVIDIA H100", 3, "NVLink 18")
    assert machine.version == f"{version('pyallreduce')}, protocol {PROTOCOL_VERSION}"


def test_other_machines_have_other_keys() -> None:
    pair = [rank_of(rank, 2) for rank in range(2)]
    mixed = [pair[0], replace(pair[1], gpu_name="NVIDIA H200")]
    pcie = [rank_of(rank, 2, nvlink=0) for rank in range(2)]
    one = [replace(f, gpu_uuid="GPU-0") for f in pair]
    host = [replace(f, target="host") for f in pair]
    keys = [machine_of(group) for group in (pair, mixed, pcie, one, host)]
    assert len(set(keys)) == len(keys)
    assert [k.link for k in keys] == ["NVLink 18", "NVLink 18", "PCIe", "one shared GPU", "host"]
    assert keys[1].gpu == "NVIDIA H100 and NVIDIA H200"


# ---- the file ------------------------------------------------------------------------------------


def test_what_is_stored_is_found(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tuning.json"
    save(H100, TABLE, path)
    four = replace(H100, world=4)
    save(four, OTHER, path)
    assert load(H100, path) == TABLE
    assert load(four, path) == OTHER
    assert load(replace(H100, gpu="NVIDIA A100"), path) is None
    assert load(replace(H100, link="PCIe"), path) is None
    assert load(replace(H100, version="0.2.0"), path) is None


def test_a_new_table_replaces_the_old_one_of_any_version(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    save(replace(H100, version="0.0.9"), OTHER, path)
    save(H100, OTHER, path)
    save(H100, TABLE, path)
    assert load(H100, path) == TABLE
    assert len(json.loads(path.read_text(encoding="utf-8"))["tables"]) == 1


def test_no_file_is_no_table_and_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load(H100, tmp_path / "none.json") is None
    assert load(H100, None) is None
    assert caplog.records == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "{}",
        '{"format": 2, "tables": []}',
        '{"format": 1}',
        '{"format": 1, "tables": [1]}',
        '{"format": 1, "tables": [{"machine": MACHINE}]}',
        '{"format": 1, "tables": [{"machine": MACHINE, "entries": []}]}',
        '{"format": 1, "tables": [{"machine": MACHINE, "entries": [[1, "ring", 0, 0]]}]}',
        '{"format": 1, "tables": [{"machine": MACHINE, "entries": [[1, "nccl", 0, 0, 0]]}]}',
        '{"format": 1, "tables": [{"machine": MACHINE, "entries": [["1", "nccl", 0, 0]]}]}',
        '{"format": 1, "tables": [{"machine": MACHINE, "entries": 7}]}',
        "\xff",
    ],
)
def test_a_bad_file_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    path = tmp_path / "tuning.json"
    machine = json.dumps(vars(H100))
    path.write_bytes(text.replace("MACHINE", machine).encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert load(H100, path) is None
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "are ignored" in caplog.text
    save(H100, TABLE, path)  # and it is mended by the next measurement
    assert load(H100, path) == TABLE


def test_a_folder_in_its_place_and_a_huge_file_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load(H100, tmp_path) is None
    huge = tmp_path / "huge.json"
    huge.write_text(" " * (2 << 20), encoding="utf-8")
    assert load(H100, huge) is None
    assert len(caplog.records) == 2


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    machines = [replace(H100, world=world) for world in range(2, 9)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda machine: save(machine, TABLE, path), machines))
    assert all(load(machine, path) == TABLE for machine in machines)
    assert [f.name for f in tmp_path.iterdir() if f.suffix == ".json"] == ["tuning.json"]
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == FORMAT


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert path_of("off") is None
    assert path_of("/a/b.json") == Path("/a/b.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert path_of("") == tmp_path / "pyallreduce" / "tuning.json"

    def fail(_name: str) -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(tuned.platformdirs, "user_cache_path", fail)
    assert path_of("") is None


# ---- the choice ----------------------------------------------------------------------------------


def test_the_fewest_blocks_of_equally_fast_launches() -> None:
    measured = [
        Measured("one_shot", 32, 96, 2.00),
        Measured("one_shot", 8, 352, 2.03),
        Measured("one_shot", 4, 480, 2.10),
    ]
    assert choose(KIB, measured).best == measured[1]


def test_nccl_only_where_it_is_clearly_faster() -> None:
    ours = Measured("two_shot", 64, 480, 100.0)
    assert choose(MIB, [ours, Measured("nccl", 0, 0, 96.0)]).best == ours
    nccl = Measured("nccl", 0, 0, 90.0)
    assert choose(MIB, [ours, nccl]).best == nccl
    assert choose(MIB, [ours, nccl]).nccl_us == 90.0


def test_wrong_sums_are_no_table() -> None:
    with pytest.raises(TableError, match="pyallreduce check"):
        choose(KIB, [Measured("nccl", 0, 0, 1.0)])


def choice(nbytes: int, algorithm: str, blocks: int = 0, lanes: int = 0) -> Choice:
    return Choice(nbytes, Measured(algorithm, blocks, lanes, 1.0), 2.0)  # type: ignore[arg-type]


def test_equal_neighbours_are_one_entry() -> None:
    choices = [
        choice(KIB, "one_shot", 1, 96),
        choice(2 * KIB, "one_shot", 1, 96),
        choice(4 * KIB, "one_shot", 2, 96),
        choice(32 * MIB, "two_shot", 64, 480),
        choice(64 * MIB, "two_shot", 64, 480),
    ]
    assert table_of(choices[::-1], shipped.HOST).entries == (
        Entry(2 * KIB, "one_shot", 1, 96),
        Entry(4 * KIB, "one_shot", 2, 96),
        Entry(MAX_BYTES, "two_shot", 64, 480),
    )


@pytest.mark.parametrize("table", [shipped.HOST, shipped.GPU[2]])
def test_what_was_not_measured_goes_by_the_shipped_table(table: Table) -> None:
    tuned_table = table_of([choice(4 * KIB, "two_shot", 1, 96)], table)
    assert tuned_table.entry(4 * KIB) == Entry(4 * KIB, "two_shot", 1, 96)
    for nbytes in (4 * KIB + 1, 64 * KIB, 4 * MIB, MAX_BYTES):
        assert tuned_table.entry(nbytes) == table.entry(nbytes)


@pytest.mark.parametrize(
    ("sizes", "told"), [(2, []), (3, ["2 of 3 sizes measured: --seconds were over"])]
)
def test_sizes_that_there_was_no_time_for_are_told(
    sizes: int,
    told: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = {"gpu": "none", "world": 2, "link": "memory", "version": "0"}

    def measures_two(*_: object, on_report: Report, **__: object) -> None:
        start = {"backend": "native", "reason": "OK", "fallback": "gloo", "machine": machine}
        on_report(0, {"start": start})
        for done, nbytes in enumerate((1024, 2048)):
            on_report(0, {"size": nbytes, "done": done, "of": sizes})
            best = {"algorithm": "one_shot", "blocks": 1, "lanes": 64, "us": 2.0}
            on_report(0, {"bytes": nbytes, "measured": [best]})

    monkeypatch.setattr(tune, "launch", measures_two)
    monkeypatch.setattr(tune, "_progress", lambda: contextlib.nullcontext(lambda _: None))
    assert tune.run(Placement(2, 0), tmp_path / "table.json", {}, timeout_s=1) is not None
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "sizes measured" in line] == told
