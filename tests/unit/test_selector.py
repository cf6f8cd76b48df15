# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""decide(): every veto, whatever the order of the facts, in words that name the ranks."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyallreduce.errors import InvalidCall
from pyallreduce.facts import PROTOCOL_VERSION, Facts, Link, share_a_gpu
from pyallreduce.reasons import Code
from pyallreduce.selector import decide

DIGEST = bytes(8)


def uuid(index: int) -> str:
    return f"GPU-{index:08x}-0000-0000-0000-000000000000"


def gpu_rank(rank: int, world: int) -> Facts:
    """A rank of a machine where all is well."""
    return Facts(
        rank=rank,
        world=world,
        target="cuda",
        module="cuda",
        protocol=PROTOCOL_VERSION,
        boot_id="boot",
        pid=100 + rank,
        pid_namespace=4026531836,
        gpu_uuid=uuid(rank),
        gpu_name="NVIDIA H100",
        bus_id=f"0000:{rank:02x}:00.0",
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
        config_digest=DIGEST,
        share_gpu=False,
        links=tuple(Link(uuid(i), access=True, nvlink=18) for i in range(world) if i != rank),
        error="",
    )


def host_rank(rank: int, world: int) -> Facts:
    return replace(
        gpu_rank(rank, world),
        target="host",
        module="host",
        gpu_uuid="",
        gpu_name="",
        bus_id="",
        driver_cuda=0,
        build_cuda=0,
        has_kernel=False,
        links=(),
    )


def group(world: int, make: Callable[[int, int], Facts] = gpu_rank) -> list[Facts]:
    return [make(rank, world) for rank in range(world)]


def relink(facts: Facts, peer: int, **changes: Any) -> Facts:
    links = (replace(x, **changes) if x.peer_uuid == uuid(peer) else x for x in facts.links)
    return replace(facts, links=tuple(links))


@dataclass(frozen=True)
class Veto:
    """A group of `world` ranks in which rank `rank` is changed, and what comes of it."""

    code: Code
    change: Callable[[Facts], Facts]
    world: int = 2
    rank: int = 1
    says: str = ""
    make: Callable[[int, int], Facts] = gpu_rank

    def facts(self) -> list[Facts]:
        facts = group(self.world, self.make)
        facts[self.rank] = self.change(facts[self.rank])
        return facts


def setting(**changes: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, **changes)


ONE_RANK_VETOES = {
    "protocol": Veto(Code.PROTOCOL_VERSION, setting(protocol=99), says="rank 1: protocol 99"),
    "digest": Veto(Code.CONFIG_DIVERGED, setting(config_digest=b"x" * 8), says="rank 1: settings"),
    "requests": Veto(Code.CONFIG_DIVERGED, setting(backend="nccl"), says="rank 1: backend nccl"),
    "host": Veto(Code.SEVERAL_HOSTS, setting(boot_id="other"), says="rank 0: boot boot; rank 1:"),
    "no boot id": Veto(Code.PROBE_FAILED, setting(boot_id="", error="EACCES"), says="EACCES"),
    "no namespace": Veto(Code.PROBE_FAILED, setting(pid_namespace=0)),
    "namespace": Veto(Code.PID_NAMESPACE, setting(pid_namespace=7), says="rank 1: namespace 7"),
    "device": Veto(Code.DEVICE_MIXED, setting(target="host"), says="rank 0: GPU; rank 1: CPU"),
    "missing": Veto(Code.MODULE_MISSING, setting(module="missing", error="no _C"), says="no _C"),
    "broken": Veto(Code.MODULE_BROKEN, setting(module="broken", error="GLIBC"), says="GLIBC"),
    "without CUDA": Veto(Code.MODULE_WITHOUT_CUDA, setting(module="host")),
    "driver": Veto(Code.DRIVER_MISSING, setting(driver_cuda=0, error="NVML: no library")),
    "old driver": Veto(
        Code.DRIVER_TOO_OLD,
        setting(driver_cuda=12080),
        says="driver CUDA 12.8, built with CUDA 13.0",
    ),
    "probe": Veto(Code.PROBE_FAILED, setting(error="NVML: lost"), says="NVML: lost"),
    "no GPU": Veto(Code.PROBE_FAILED, setting(gpu_uuid="")),
    "kernel": Veto(
        Code.NO_KERNEL, setting(has_kernel=False, capability=75), says="compute capability 7.5"
    ),
    "MIG": Veto(Code.MIG, setting(mig=True)),
    "WSL": Veto(Code.WSL, setting(wsl=True)),
    "shared": Veto(Code.SHARED_GPU, setting(gpu_uuid=uuid(0)), says="rank 0 (GPU-00000000), rank"),
    "NCCL": Veto(Code.NCCL_P2P_DISABLED, setting(nccl_p2p_disabled=True)),
    "no access": Veto(
        Code.NO_PEER_ACCESS,
        lambda facts: relink(facts, 0, access=False),
        says="rank 1 (GPU-00000001) to rank 0 (GPU-00000000)",
    ),
    "no link": Veto(Code.NO_PEER_ACCESS, setting(links=())),
    "link unread": Veto(
        Code.PROBE_FAILED,
        lambda facts: relink(facts, 0, access=False, error="NVML: Unknown Error"),
        says="Unknown Error",
    ),
    "no NVLink": Veto(
        Code.NO_NVLINK,
        lambda facts: relink(facts, 2, nvlink=0),
        world=3,
        says="rank 1 (GPU-00000001) to rank 2 (GPU-00000002)",
    ),
    "host module": Veto(Code.MODULE_MISSING, setting(module="missing"), make=host_rank),
    "host machines": Veto(Code.SEVERAL_HOSTS, setting(boot_id="other"), make=host_rank),
}
WHOLE_GROUP_VETOES = {
    Code.FORCED_NCCL: [replace(f, backend="nccl") for f in group(2)],
    Code.SINGLE_RANK: group(1),
    Code.TOO_MANY_RANKS: group(9),
}


@pytest.mark.parametrize("veto", ONE_RANK_VETOES.values(), ids=ONE_RANK_VETOES)
def test_one_rank_vetoes_for_all(veto: Veto) -> None:
    decision = decide(veto.facts())
    assert decision.backend == "nccl"
    assert decision.reason.code is veto.code
    assert f"rank {veto.rank}" in decision.reason.detail
    assert veto.says in decision.reason.detail


@pytest.mark.parametrize("code", WHOLE_GROUP_VETOES, ids=str)
def test_the_whole_group_vetoes(code: Code) -> None:
    decision = decide(WHOLE_GROUP_VETOES[code])
    assert (decision.backend, decision.reason.code) == ("nccl", code)
    assert re.search(r"ranks? 0", decision.reason.detail)


@pytest.mark.parametrize("world", range(2, 9))
@pytest.mark.parametrize("make", [gpu_rank, host_rank])
def test_a_sound_group_is_native(make: Callable[[int, int], Facts], world: int) -> None:
    decision = decide(group(world, make))
    assert (decision.backend, decision.reason.code) == ("native", Code.OK)
    assert decision.target == make(0, world).target
    assert decision.requested == "auto"
    assert f"{world} ranks on" in decision.reason.detail


def test_two_gpus_need_no_nvlink() -> None:
    decision = decide([relink(f, 1 - f.rank, nvlink=0) for f in group(2)])
    assert decision.backend == "native"
    assert "by PCIe" in decision.reason.detail


def test_a_module_with_cuda_serves_the_host_too() -> None:
    facts = [replace(f, module="cuda", build_cuda=13000) for f in group(2, host_rank)]
    assert decide(facts).backend == "native"


def test_a_driver_of_the_same_major_version_serves() -> None:
    assert decide([replace(f, build_cuda=13020) for f in group(2)]).backend == "native"


def test_ranks_may_share_a_gpu_if_all_say_so() -> None:
    shared = [replace(f, gpu_uuid=uuid(0), links=(), share_gpu=True) for f in group(4)]
    assert decide(shared).backend == "native"
    shared[2] = replace(shared[2], share_gpu=False)
    assert decide(shared).reason.code is Code.SHARED_GPU


@pytest.mark.parametrize(
    ("uuids", "shared"),
    [
        (["GPU-0", "GPU-1"], False),
        (["GPU-0", "GPU-0"], True),
        (["", "", ""], False),
        (["", "GPU-0", ""], False),
        (["GPU-0", "", "GPU-0"], True),
    ],
)
def test_gpus_that_nobody_knows_are_not_one(uuids: list[str], shared: bool) -> None:
    facts = [replace(f, gpu_uuid=u) for f, u in zip(group(len(uuids)), uuids, strict=True)]
    assert share_a_gpu(facts) is shared


def test_a_link_to_an_outsider_does_not_matter() -> None:
    outsider = Link(uuid(7), access=False, nvlink=0, error="NVML: GPU is lost")
    assert decide([replace(f, links=(*f.links, outsider)) for f in group(4)]).backend == "native"


@pytest.mark.parametrize("who", [0, 1])
def test_confidential_computing_is_named_where_it_keeps_gpus_apart(who: int) -> None:
    facts = group(2)
    facts[who] = replace(facts[who], confidential=True)
    assert decide(facts).backend == "native", "with a path the live checks decide"
    facts[0] = replace(facts[0], links=())
    assert decide(facts).reason.code is Code.CONFIDENTIAL_COMPUTING


def test_many_bad_pairs_are_counted() -> None:
    facts = [replace(f, links=()) for f in group(8)]
    detail = decide(facts).reason.detail
    assert detail.count(" to ") == 3
    assert detail.endswith("; 53 more")


@pytest.mark.parametrize("requested", ["auto", "native"])
def test_a_veto_keeps_the_request(requested: str) -> None:
    facts = [replace(f, backend=requested, mig=True) for f in group(2)]
    decision = decide(facts)
    assert (decision.backend, decision.requested) == ("nccl", requested)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_demand_by_one_rank_is_a_demand_to_all(rank: int) -> None:
    facts = group(2)
    facts[rank] = replace(facts[rank], backend="native")
    decision = decide(facts)
    assert decision.reason.code is Code.CONFIG_DIVERGED
    assert decision.requested == "native"


def test_earlier_checks_win() -> None:
    faults: dict[Code, dict[str, Any]] = {
        Code.PROTOCOL_VERSION: {"protocol": 9},
        Code.CONFIG_DIVERGED: {"config_digest": b"y" * 8},
        Code.SEVERAL_HOSTS: {"boot_id": "other"},
        Code.PID_NAMESPACE: {"pid_namespace": 7},
        Code.MODULE_BROKEN: {"module": "broken"},
        Code.DRIVER_MISSING: {"driver_cuda": 0},
        Code.PROBE_FAILED: {"error": "NVML: lost"},
        Code.NO_KERNEL: {"has_kernel": False},
        Code.MIG: {"mig": True},
        Code.WSL: {"wsl": True},
        Code.SHARED_GPU: {"gpu_uuid": uuid(0)},
        Code.NCCL_P2P_DISABLED: {"nccl_p2p_disabled": True},
        Code.NO_PEER_ACCESS: {"links": ()},
    }
    facts = group(3)
    # From the last fault to the first, each is added to those after it, and takes over.
    for code, fault in reversed(faults.items()):
        facts[1] = replace(facts[1], **fault)
        assert decide(facts).reason.code is code


@pytest.mark.parametrize(
    "facts",
    [
        [],
        group(3)[:2],
        [group(2)[0], group(2)[0]],
        [gpu_rank(0, 2), gpu_rank(1, 3)],
        group(3)[1:],
    ],
    ids=["none", "too few", "twice", "worlds", "no rank 0"],
)
def test_incomplete_facts_are_refused(facts: Sequence[Facts]) -> None:
    with pytest.raises(InvalidCall, match="each rank of one group once"):
        decide(facts)


link_choices = st.builds(
    Link,
    peer_uuid=st.integers(0, 9).map(uuid),
    access=st.booleans(),
    nvlink=st.integers(0, 18),
    error=st.sampled_from(["", "NVML: lost"]),
)
# Mostly sound, so that the later checks are reached as well.
changes: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "protocol": st.integers(1, 2),
        "target": st.sampled_from(["cuda", "host"]),
        "module": st.sampled_from(["cuda", "host", "missing", "broken"]),
        "boot_id": st.sampled_from(["boot", "other", ""]),
        "pid_namespace": st.integers(0, 2),
        "gpu_uuid": st.integers(0, 9).map(uuid) | st.just(""),
        "driver_cuda": st.sampled_from([0, 12000, 13000]),
        "has_kernel": st.booleans(),
        "mig": st.booleans(),
        "confidential": st.booleans(),
        "wsl": st.booleans(),
        "nccl_p2p_disabled": st.booleans(),
        "backend": st.sampled_from(["auto", "native", "nccl"]),
        "config_digest": st.sampled_from([DIGEST, b"x" * 8]),
        "share_gpu": st.booleans(),
        "links": st.lists(link_choices, max_size=4).map(tuple),
        "error": st.sampled_from(["", "NVML: lost"]),
    },
)


@st.composite
def any_groups(draw: st.DrawFn) -> list[Facts]:
    """A sound group of 1 to 10 ranks, of which some were changed at will."""
    facts = group(draw(st.integers(1, 10)), draw(st.sampled_from([gpu_rank, host_rank])))
    for rank in draw(st.sets(st.integers(0, len(facts) - 1), max_size=3)):
        facts[rank] = replace(facts[rank], **draw(changes))
    return facts


@given(any_groups(), st.randoms(use_true_random=False))
def test_any_order_gives_one_verdict(facts: list[Facts], rng: random.Random) -> None:
    verdict = decide(facts)
    shuffled = list(facts)
    rng.shuffle(shuffled)
    assert decide(shuffled) == verdict
    assert decide(tuple(reversed(facts))) == verdict


@given(any_groups())
def test_any_veto_names_ranks_of_the_group(facts: list[Facts]) -> None:
    decision = decide(facts)
    assert (decision.backend == "native") is (decision.reason.code is Code.OK)
    if decision.backend == "nccl":
        named = re.findall(r"\branks? (\d+)", decision.reason.detail)
        assert named
        assert all(int(rank) < len(facts) for rank in named)


@given(any_groups())
def test_native_is_safe(facts: list[Facts]) -> None:
    """What must hold whenever the answer is native, said once more and differently."""
    if decide(facts).backend == "nccl":
        return
    assert 2 <= len(facts) <= 8
    assert len({(f.boot_id, f.pid_namespace, f.protocol, f.config_digest) for f in facts}) == 1
    if facts[0].target == "cuda":
        for a in facts:
            assert a.has_kernel
            assert not any((a.mig, a.wsl, a.nccl_p2p_disabled, a.error))
            for b in facts:
                link = a.link_to(b.gpu_uuid)
                assert a.gpu_uuid == b.gpu_uuid or (link is not None and link.access)
