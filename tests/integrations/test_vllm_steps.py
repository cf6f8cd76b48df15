# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The check at the end of each step, on stand-ins for vLLM's workers."""

from __future__ import annotations

import gc
import signal
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pyallreduce.errors import AllReduceAborted
from pyallreduce.integrations import adapter, vllm_errors, vllm_steps

ABORTED = "rank 0 waited 60.0 s for rank 1"


class Slot:
    """In place of an adapter: an abort is found at the `fails`-th check."""

    def __init__(self) -> None:
        self.steps = self.checks = self.settled = self.left = 0
        self.fails = 0
        self.left_raises = False
        self.communicator = types.SimpleNamespace(rank=1)

    def start_step(self) -> None:
        self.steps += 1

    def leave(self) -> None:
        self.left += 1
        if self.left_raises:
            message = "half closed"
            raise OSError(message)

    def settle(self) -> None:
        self.settled += 1

    def check(self) -> None:
        self.checks += 1
        if self.checks == self.fails:
            raise AllReduceAborted(ABORTED)


class Later:
    """An output of asynchronous scheduling."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot

    def get_output(self) -> str:
        assert self.slot.checks == 0, "checked before the tokens had arrived"
        return "tokens"


class Derived(Later):
    """Its `get_output` is that of its base."""


class Other(Later):
    def get_output(self) -> str:
        return "other tokens"


class Worker:
    """`raises` is what a step, or a part of the start-up, ends in."""

    rank = 0
    raises: Exception | None = None
    parallel_config = types.SimpleNamespace(
        distributed_executor_backend="mp",
        world_size=2,
        tensor_parallel_size=2,
        prefill_context_parallel_size=1,
    )

    def __init__(self, slot: Slot) -> None:
        self.slot = slot

    def run(self) -> None:
        if self.raises is not None:
            raise self.raises

    def execute_model(self, what: str) -> Any:
        self.run()
        alone = types.SimpleNamespace(get_output=lambda: "its own tokens")
        return {
            "none": None,
            "now": "tokens",
            "later": Later(self.slot),
            "derived": Derived(self.slot),
            "other": Other(self.slot),
            "alone": alone,
        }[what]

    def sample_tokens(self, what: str) -> Any:
        return self.execute_model(what)

    def compile_or_warm_up_model(self) -> int:
        self.execute_model("none")  # as some of vLLM's releases do
        return 7

    def determine_available_memory(self) -> int:
        self.run()
        return 9

    def execute_dummy_batch(self) -> None:
        self.run()

    def add_lora(self) -> None:
        self.run()


class CpuWorker(Worker):
    def compile_or_warm_up_model(self) -> int:
        return 8


class WorkerProc:
    """As in vLLM 0.20: an error of get_output would end the thread that calls this."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def enqueue_output(self, output: Any) -> None:
        if hasattr(output, "get_output"):
            output = output.get_output()
        self.sent.append(output)


class GroupCoordinator:
    """The pipeline's group, by which a stage hands its output to the next."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send_tensor_dict(self, tensors: dict[str, Any], dst: int) -> None:
        self.sent.append((tensors, dst))

    def isend_tensor_dict(self, tensors: dict[str, Any], dst: int) -> None:
        self.sent.append((tensors, dst))

    def broadcast_tensor_dict(self, tensors: dict[str, Any], src: int) -> None:
        self.sent.append((tensors, src))


class StatelessGroupCoordinator(GroupCoordinator):
    """That of elastic expert parallelism has some methods of its own."""

    def send_tensor_dict(self, tensors: dict[str, Any], dst: int) -> None:
        self.sent.append((tensors, dst))


class RayWorkerWrapper:
    """A stage's worker under Ray, whose channels carry its output to the next."""

    rank = 0

    def execute_model_ray(self, given: tuple[Any, ...]) -> Any:
        return (*given, "hidden states")


@pytest.fixture
def slot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slot]:
    found = Slot()
    monkeypatch.setattr(adapter, "_open", [weakref.ref(found)])
    classes = {
        "vllm.v1.worker.gpu_worker": Worker,
        "vllm.v1.executor.multiproc_executor": WorkerProc,
        "vllm.distributed.parallel_state": GroupCoordinator,
        "vllm.v1.executor.ray_utils": RayWorkerWrapper,
    }
    for name, cls in classes.items():
        module = types.ModuleType(name)
        setattr(module, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, name, module)
    groups = (GroupCoordinator, StatelessGroupCoordinator)
    touched = (Worker, CpuWorker, WorkerProc, RayWorkerWrapper, *groups, Later, Derived, Other)
    before = {cls: dict(vars(cls)) for cls in touched}
    vllm_steps.guard()
    vllm_steps.guard()
    yield found
    for cls, methods in before.items():
        for name, method in methods.items():
            if callable(method) and not name.startswith("__"):
                setattr(cls, name, method)


def test_tokens_that_are_there_are_checked(slot: Slot) -> None:
    assert CpuWorker(slot).execute_model("now") == "tokens"
    assert (slot.steps, slot.checks) == (1, 1)


def test_a_forward_pass_without_tokens_is_not(slot: Slot) -> None:
    assert CpuWorker(slot).execute_model("none") is None
    assert (slot.steps, slot.checks) == (1, 0)


SENDS = ["send_tensor_dict", "isend_tensor_dict", "broadcast_tensor_dict"]


@pytest.mark.parametrize("cls", [GroupCoordinator, StatelessGroupCoordinator])
@pytest.mark.parametrize("send", SENDS)
def test_what_a_stage_hands_to_the_next_is_checked_before(
    slot: Slot, send: str, cls: type[GroupCoordinator]
) -> None:
    group = cls()
    getattr(group, send)({"hidden_states": "sound"}, 1)
    assert (slot.checks, len(group.sent)) == (1, 1)
    slot.fails = 2
    with pytest.raises(AllReduceAborted):
        getattr(group, send)({"hidden_states": "poison"}, 1)
    assert len(group.sent) == 1


def test_what_ray_hands_to_the_next_stage_is_checked_before(slot: Slot) -> None:
    stage = RayWorkerWrapper()
    assert stage.execute_model_ray(("scheduled",)) == ("scheduled", "hidden states")
    assert (slot.steps, slot.checks) == (1, 1)
    slot.fails = 2
    with pytest.raises(AllReduceAborted):
        stage.execute_model_ray(("scheduled",))


@pytest.fixture
def order(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in this order, where there is a GPU whose work takes its time."""
    seen: list[str] = []
    stream = types.SimpleNamespace(synchronize=lambda: seen.append("GPU done"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    check = slot.check
    monkeypatch.setattr(slot, "check", lambda: (seen.append("checked"), check()))
    return seen


@pytest.mark.parametrize("send", SENDS)
def test_a_stage_waits_for_its_gpu_before_the_check(order: list[str], send: str) -> None:
    """A kernel that is still under way has nothing in its record."""
    group = GroupCoordinator()
    group.sent = order
    getattr(group, send)({}, 1)
    assert order == ["GPU done", "checked", ({}, 1)]


def test_a_stage_of_rays_waits_for_its_gpu_before_the_check(order: list[str]) -> None:
    RayWorkerWrapper().execute_model_ray(())
    assert order == ["GPU done", "checked"]


@pytest.mark.parametrize("method", ["determine_available_memory", "compile_or_warm_up_model"])
def test_a_start_waits_for_its_gpu_before_the_check(
    slot: Slot, order: list[str], method: str
) -> None:
    getattr(Worker(slot), method)()
    assert order == ["GPU done", "checked"]


@pytest.mark.parametrize(
    ("what", "tokens"),
    [
        ("later", "tokens"),
        ("derived", "tokens"),
        ("other", "other tokens"),
        ("alone", "its own tokens"),
    ],
)
def test_tokens_on_their_way_are_checked_on_arrival(slot: Slot, what: str, tokens: str) -> None:
    for _ in range(2):  # the second finds what the first has wrapped
        slot.checks = 0
        output = Worker(slot).sample_tokens(what)
        assert slot.checks == 0
        assert output.get_output() == tokens
        assert slot.checks == 1


@pytest.mark.parametrize("what", ["later", "derived", "other"])
def test_a_result_does_not_hold_itself(slot: Slot, what: str) -> None:
    """Device and pinned tensors of a step must not wait for a cyclic collection."""
    gc.disable()
    try:
        output = Worker(slot).execute_model(what)
        output.get_output()
        gone = weakref.ref(output)
        del output
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("what", ["now", "later"])
def test_no_tokens_of_an_aborted_step_leave(slot: Slot, what: str) -> None:
    slot.fails = 1
    process = WorkerProc()
    try:
        output: Any = Worker(slot).execute_model(what)
    except AllReduceAborted as error:
        output = error  # as vLLM's loop does
    process.enqueue_output(output)
    assert [str(sent) for sent in process.sent] == [ABORTED]


@pytest.mark.parametrize(("cls", "result"), [(Worker, 7), (CpuWorker, 8)])
def test_waits_are_patient_until_the_model_has_warmed_up(
    slot: Slot, cls: type[Worker], result: int
) -> None:
    cls(slot).execute_model("now")
    assert slot.settled == 0
    assert cls(slot).compile_or_warm_up_model() == result
    assert slot.settled == 1


def test_a_server_whose_warm_up_was_aborted_is_not_ready(slot: Slot) -> None:
    slot.fails = 1
    with pytest.raises(AllReduceAborted):
        Worker(slot).compile_or_warm_up_model()


# What all ranks do together, and whose answer vLLM waits for: of four ranks in two stages of two.
TOGETHER = {
    "execute_model": 2,
    "sample_tokens": 2,
    "execute_dummy_batch": 2,
    "determine_available_memory": 0,
    "compile_or_warm_up_model": 0,
}


def act(worker: Worker, method: str) -> Any:
    steps = ("execute_model", "sample_tokens")
    return getattr(worker, method)(*(["none"] if method in steps else []))


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """In how many seconds the kernel is asked to end this process, which it is not in the end."""
    asked: list[float] = []
    monkeypatch.setattr(vllm_errors, "_GRACE_S", 0)
    monkeypatch.setattr(signal, "setitimer", lambda _, seconds: asked.append(seconds))
    before = signal.getsignal(signal.SIGALRM)
    yield asked
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("method", TOGETHER)
def test_a_worker_whose_error_nobody_hears_ends(
    slot: Slot, method: str, rank: int, forced: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker.parallel_config, "world_size", 4)
    worker = Worker(slot)
    worker.rank, worker.raises = rank, MemoryError("planted")
    heard = TOGETHER[method] == rank
    with pytest.raises(MemoryError if heard else SystemExit, match="planted") as ended:
        act(worker, method)
    if not heard:
        assert str(ended.value.code).startswith(
            "MemoryError: planted. pyallreduce ends this worker"
        )
        assert f"(rank {rank})" in str(ended.value.code)
    assert slot.left == (0 if heard else 1), "peers are told at once, by who ends alone"
    assert len(forced) == (0 if heard else 1), "nothing may keep it from ending"
    worker.raises = None
    act(worker, method)


@pytest.mark.usefixtures("forced")
def test_a_worker_that_can_not_say_that_it_leaves_ends_too(slot: Slot) -> None:
    worker = Worker(slot)
    worker.rank, worker.raises, slot.left_raises = 1, MemoryError("planted"), True
    with pytest.raises(SystemExit):
        worker.execute_model("now")


def test_only_what_all_ranks_do_together_ends_a_worker(slot: Slot) -> None:
    """An adapter that is not there, say: all ranks answer, and the engine goes on."""
    worker = Worker(slot)
    worker.rank, worker.raises = 1, ValueError("no such adapter")
    with pytest.raises(ValueError, match="no such adapter"):
        worker.add_lora()
    assert slot.left == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("distributed_executor_backend", name) for name in ("ray", "external_launcher", "uni")),
        ("distributed_executor_backend", None),
        ("enable_fault_tolerance", True),  # of vLLM 0.32, which asks all workers to go on
    ],
)
def test_where_others_see_to_errors_a_worker_lives_on(
    slot: Slot, setting: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker.parallel_config, setting, value, raising=False)
    worker = Worker(slot)
    worker.rank, worker.raises = 1, MemoryError("planted")
    with pytest.raises(MemoryError):
        worker.execute_model("now")
    assert slot.left == 0


def test_a_server_whose_profiling_was_aborted_is_not_ready(slot: Slot) -> None:
    slot.fails = 1
    with pytest.raises(AllReduceAborted):
        Worker(slot).determine_available_memory()
    assert slot.settled == 0
