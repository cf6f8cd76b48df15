# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The Communicator among processes over shared memory: refusals, mismatches, fallbacks, chunks."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyallreduce.launch import Placement, launch

pytestmark = pytest.mark.ranks


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def run(target: str, ranks: int, **options: Any) -> list[Any]:
    """What each rank returns. A target without a module is one of communicator_targets.py."""
    found = target if ":" in target else f"communicator_targets:{target}"
    return launch(found, options, Placement(ranks, 0), deadline_s=90)


@pytest.mark.parametrize("who", [0, 2])
def test_a_refusal_reaches_every_rank_and_all_go_on(who: int) -> None:
    for rank, seen in enumerate(run("argument_targets:refuse_on_one", 3, who=who)):
        for name, (kind, text, fine) in seen.items():
            assert kind == ("InvalidCall" if rank == who else "CallRefused"), (name, text)
            assert fine, f"{name}: the next call of rank {rank} is wrong"
            if rank != who:
                assert f"rank {who} refused" in text, name
                assert ("dtype" in text) == (name == "integer natively"), (name, text)


def test_a_lack_of_memory_is_told_to_the_peers() -> None:
    """Else they would wait for their deadline."""
    for rank, seen in enumerate(run("argument_targets:without_memory", 2)):
        for name, (kind, text, fine) in seen.items():
            assert kind == ("OutOfMemoryError" if rank == 1 else "CallRefused"), (name, text)
            assert ("none left" if rank == 1 else "had no memory") in text, name
            assert fine, f"{name}: the next call of rank {rank} is wrong"


def test_a_lack_of_memory_in_a_call_that_gloo_carries_harms_no_native_one() -> None:
    """Peers in gloo could not hear it: they would find it in their next call."""
    assert run("argument_targets:without_memory_beside_gloo", 2) == [[[1.0], "none", "", True]] * 2


def test_another_error_is_not_told_as_a_lack_of_memory() -> None:
    assert run("argument_targets:another_error", 2) == [[False, True]] * 2


def test_a_second_refusal_where_tensors_have_no_memory_harms_nobody() -> None:
    told = [["CallRefused", "CallRefused", True], ["InvalidCall", "InvalidCall", True]]
    assert run("argument_targets:refuse_twice", 2) == told


def test_replays_behind_a_refusal_drain() -> None:
    for rank, (told, drained, _) in enumerate(run("argument_targets:replay_after_refusal", 2)):
        assert told == ("InvalidCall" if rank == 1 else "CallRefused")
        assert drained == "True", "a replay behind a refusal ran"


def test_check_tells_of_replays_behind_a_refusal() -> None:
    for _, _, checked in run("argument_targets:replay_after_refusal", 2):
        assert checked == "AllReduceAborted", "the output of a drained replay was called valid"


def test_calls_of_plain_tensors_are_not_judged_at_length() -> None:
    """That judgement takes as much of the host as the launch."""
    for seen in run("argument_targets:plain_calls", 2):
        assert all(fine == [True, True] for fine in seen.values()), seen


@pytest.mark.parametrize("backend", ["auto", "nccl"])
def test_a_call_that_all_refuse_harms_nobody(backend: str) -> None:
    for seen in run("argument_targets:refuse_on_all", 2, backend=backend):
        assert {kind for kind, _, _ in seen.values()} == {"InvalidCall"}
        assert all(fine for _, _, fine in seen.values())
        assert "expected" in seen["op"][1]
        assert "requires grad" in seen["grad"][1]
        assert "pass the local tensor" in seen["wrapper"][1]
        assert "pass out=" in seen["foreign"][1]
        assert "Foreign of dtype ?" in seen["foreign with out"][1]


@pytest.mark.parametrize(
    "difference", [{"elements": 1001}, {"dtype": True}, {"algorithm": True}, {"tag": True}]
)
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_disagree_hear_both_calls(ranks: int, difference: dict[str, Any]) -> None:
    results = run("mismatch", ranks, **difference)
    for before, kind, text, poisoned, again, after, aborts in results:
        assert before
        assert kind == "CallMismatch", text
        assert "Rank 0: call" in text or "Rank 1: call" in text, text
        assert poisoned, "data of two calls were mixed"
        assert again == "CallMismatch", "a stopped communicator took another call"
        assert after, "recover() did not bring the native path back"
        assert aborts == 2


def test_an_abort_behind_a_refusal_is_told_on_all_ranks() -> None:
    for seen in run("abort_behind_refusal", 2):
        *told, recovered = seen
        assert [kind for kind, _ in told] == ["AllReduceAborted"] * 2, seen
        assert all("waited 0.3 s for rank 1" in text for _, text in told)
        assert recovered[0] == "True"


def test_graphs_of_before_drain_when_recovery_ends_in_the_fallback() -> None:
    for rank, (*decision, drained, right, plan, aborts) in enumerate(run("recovery_vetoed", 2)):
        assert decision == ["nccl", "KERNEL_MISMATCH"]
        assert drained
        assert right
        assert plan == "nccl", "the plan is of a path that is gone"
        assert aborts == (1 if rank == 0 else 0), "counts are since construction"


def test_the_programs_default_device_is_not_that_of_the_exchange() -> None:
    first, second = run("another_default_device", 2)
    assert first == ["native", "CallRefused", True, True]
    assert second == ["native", "InvalidCall", True, True]


def test_a_slot_keeps_strides_and_has_the_usual_deadline_once_settled() -> None:
    for seen in run("slot", 2):
        assert seen["whole"] == seen["turned"] == seen["in part"] == [True, True]
        assert seen["patient"] == [200_000], "ten times the usual"
        assert seen["settled"] == [200_000, 20_000], "also before the first call"
        assert seen["again"] == 0, "a step of an engine pays nothing for it"
        assert seen["captured"] == [200_000, 20_000]


def test_a_step_goes_through_the_slots_that_somebody_holds() -> None:
    assert run("dropped_slot", 2) == [[2, 1, 0]] * 2


def test_a_rank_that_leaves_is_named_at_once() -> None:
    error, text, seconds = run("left", 2)[0]
    assert error == "AllReduceAborted"
    assert re.search(r"rank 0 waited for rank 1 \(\w+\), which has closed its communicator", text)
    assert seconds < 5, "it waited for its deadline, of 20 s"


@pytest.mark.parametrize("lazy", ["0", "1"])
def test_a_rank_that_is_away_is_named_in_time(lazy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where gloo connects when it is first used, and waits for that as long as it likes; rank
    2 then waits for rank 0, which waits."""
    monkeypatch.setenv("TORCH_GLOO_LAZY_INIT", lazy)
    found = run("away", 3)
    for rank in (0, 2):
        first, again = found[rank]
        assert first[0] == 1 or (lazy == "1" and rank == 2), first
        assert f"rank {rank}: the exchange `roll call` failed: rank {first[0]} " in first[1]
        assert 0.9 < first[2] < 2
        assert again[:2] == first[:2], "the first failure explains all later ones"
        assert again[2] < 0.1


def test_a_group_for_frames_is_made_in_time_or_not() -> None:
    kind, text, seconds = run("a_companion_in_time", 2)[0]
    assert kind == "ExchangeTimeout", text
    assert "0.5 s" in text
    assert seconds < 2.5


def test_a_close_under_a_waiting_call_ends_it() -> None:
    (waited, asked, took), (kind, text) = run("closed_under_a_call", 2)
    assert {waited, asked} <= {"AllReduceAborted", "CommunicatorClosed"}
    assert asked == "CommunicatorClosed"
    assert took < 3
    assert kind == "AllReduceAborted"
    assert "rank 0, which has closed its communicator" in text


def test_a_rank_that_fails_behind_the_agreement_lets_go() -> None:
    _, (kind, text, took) = run("no_fallback", 2)
    assert kind == "AllReduceAborted", text
    assert "has closed its communicator" in text
    assert took < 3


@pytest.mark.parametrize("how", ["close", "collect", "exit"])
def test_a_forked_child_lets_its_parents_communicator_alone(how: str) -> None:
    assert run("forked", 2, how=how) == [[0, 1]] * 2


@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_a_rank_of_multiprocessing_that_ends_well_is_not_told_as_dead(how: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = str(Path(__file__).parent / "multiprocessing_ranks.py")
    ended = subprocess.run(
        [sys.executable, script, how, port], capture_output=True, text=True, timeout=90, check=True
    )
    assert ended.stdout == "sound\n", "the end of a peer passed for its death"
    assert "died" not in ended.stderr


@pytest.mark.parametrize("who", ["all", "one"])
def test_recovery_without_the_process_group_fails_on_all_ranks_alike(who: str) -> None:
    """One that has lost it must not take what was never sent for the others' answers."""
    assert run("group_destroyed", 2, who=who) == [["ExchangeTimeout", "native"]] * 2


@pytest.mark.parametrize(("ranks", "closes", "others"), [(2, 0.0, 0.5), (3, 0.5, 0.0)])
def test_nobody_waits_for_a_rank_that_has_closed_behind_its_refusal(
    ranks: int, closes: float, others: float
) -> None:
    """Whether it closes before the others come to the new generation, or while they wait there."""
    results = run(
        "recovery_targets:closed_behind_refusal",
        ranks,
        closes_after_s=closes,
        others_after_s=others,
    )
    assert results[1] == ["InvalidCall"]
    for kind, ends, seconds in results[:1] + results[2:]:
        assert kind == "CallRefused"
        assert [end for end, _ in ends] == ["AllReduceAborted"] * 2
        assert all("rank 1 has closed its communicator" in text for _, text in ends), ends
        assert seconds < 5, "it waited for the exchange's deadline, of 30 s"


@pytest.mark.parametrize("how", ["close", "leave"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_nobody_waits_for_a_rank_that_ended_while_it_waited_itself(ranks: int, how: str) -> None:
    results = run("recovery_targets:ends_while_it_waits", ranks, how=how)
    (kind, _), *_ = results[1][0]
    assert kind == "CommunicatorClosed"
    for ends, seconds in results[:1] + results[2:]:
        assert [end for end, _ in ends] == ["AllReduceAborted"] * 2
        assert all("rank 1 has closed its communicator" in text for _, text in ends), ends
        assert seconds < 5, "it waited for the exchange's deadline, of 30 s"


def test_a_recovery_that_some_rank_is_late_for_can_be_tried_again() -> None:
    for rank, ((kind, text), after) in enumerate(run("recovery_targets:late_recovery", 3)):
        assert kind == "ExchangeTimeout"
        missing = 0 if rank == 1 else 1
        assert f"rank {missing} did not come to a new generation within 0.3 s" in text
        assert after


def test_a_fallback_group_of_other_ranks_is_refused() -> None:
    assert {kind for kind, _ in run("other_fallback", 4)} == {"NotAMember"}


@pytest.mark.parametrize("algorithm", ["one_shot", "two_shot"])
def test_a_rank_that_stays_away_is_named_at_the_deadline(algorithm: str) -> None:
    for rank, (kind, text, peer, after) in enumerate(
        run("absent", 3, timeout_ms=300, algorithm=algorithm)
    ):
        assert after
        if rank != 1:
            assert (kind, peer) == ("AllReduceAborted", 1), text
            assert "for rank 1" in text


def test_what_is_not_native_goes_to_the_fallback_with_the_right_result() -> None:
    for results in run("argument_targets:fallbacks", 2):
        assert results["sum"] == [3, 8, -6]
        assert results["max"] == [2, 4, -3]
        assert results["min"] == [1, 4, -3]
        assert results["product"] == [2, 16, 9]
        assert results["avg"] == [1.5, 4.0, -3.0]
        assert results["double"] == [3.0, 8.0, -6.0]
        assert results["complex avg"] == [[1.5, 4.0, -3.0]] * 2
        assert results["integer avg"] == [1, 4, -3]
        assert results["bool avg"][0] == "InvalidCall"
        assert results["accepts"] == [True, False, False, False, False]
        assert results["accepts without grad"], "a call of it runs natively"
        assert results["stats"] == [0, {"DTYPE": 2, "OP": 7}]
        assert results["native calls"] == [1, 12]


@pytest.mark.parametrize("backend", ["auto", "nccl"])
def test_a_negated_view_is_summed_as_its_values(backend: str) -> None:
    right = {"in": [0.0], "out": [2.0], "largest": [1.0], "in place": [0.0]}
    assert run("argument_targets:negated", 2, backend=backend) == [right] * 2


def test_torch_compile_traces_the_whole_call() -> None:
    assert run("compiled", 2) == [[True, 1]] * 2


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_call_whose_result_nobody_uses_is_made(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peers wait for it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # not a graph of before
    assert run("unused", 2, backend=backend) == [[[3.0, 2.0], 1], [[3.0, 2.0], 1]]


def test_compiled_calls_are_as_eager_ones() -> None:
    for seen in run("argument_targets:compiled_arguments", 2):
        assert (seen["two_shot"], seen["algorithms"]) == (2.0, ["two_shot"])
        assert seen["accepts"] == 2.0
        assert seen["integer"] == "InvalidCall", "a forced algorithm is native or an error"
        assert seen["tags"] == [2.0] * 4
        assert seen["compilations"] <= 2, "each tag was compiled anew"
        kinds, texts = zip(*seen["refused, True"], strict=True)
        assert set(kinds) == {"Unsupported"}, "traced, with gradients or copies that are wrong"
        assert ["requires grad" in text for text in texts] == [True] * 3 + [False] * 2
        assert ["another shape or dtype" in text for text in texts] == [False] * 3 + [True] * 2
        assert {kind for kind, _ in seen["refused, False"]} == {"InvalidCall"}
        assert seen["refused tag"] == "InvalidCall"
        kind, text = seen["other tag"]
        assert kind == "CallMismatch", text
        assert "tag 7" in text
        assert "tag 8" in text


def test_subgroups_and_two_communicators_in_turn() -> None:
    first, second = ["NotAMember", [3.0, 10.0]], ["NotAMember", [7.0, 10.0]]
    assert run("subgroups", 4) == [first, first, second, second]


@pytest.mark.parametrize("ranks", [2, 5])
def test_messages_larger_than_the_slab(ranks: int) -> None:
    assert run("chunks", ranks) == [[True] * 4] * ranks


@pytest.mark.parametrize("ranks", [2, 3])
def test_messages_of_several_laps(ranks: int) -> None:
    assert run("laps", ranks) == [[True] * 4] * ranks


def test_every_half_value_is_summed_as_torch_does() -> None:
    assert run("halves", 3) == [[0, 0]] * 3


@pytest.mark.parametrize(
    ("case", "code"), [("diverged", "CONFIG_DIVERGED"), ("memory", "SLAB_MEMORY: ")]
)
def test_a_veto_of_one_rank_is_everybodys(case: str, code: str) -> None:
    results = run("decisions", 2, case=case)
    assert results[0] == results[1]
    backend, reason, right = results[0]
    assert (backend, right) == ("nccl", "True")
    assert reason.startswith(code)


@pytest.mark.parametrize(
    ("case", "error"), [("diverged", "BackendUnavailable"), ("memory", "SlabMemoryError")]
)
def test_forcing_the_impossible_names_the_reason_on_all_ranks(case: str, error: str) -> None:
    results = run("decisions", 2, case=case, native=True)
    assert results[0] == results[1]
    assert results[0][0] == error


def test_closing_twice_and_calling_a_closed_communicator() -> None:
    for working, kinds, memory in run("life", 2):
        assert working
        assert kinds == ["CommunicatorClosed"] * 3
        assert 0 < memory <= 4 << 20
