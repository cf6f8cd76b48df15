# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_communicator.py run: each target returns data that the test judges."""

from __future__ import annotations

import atexit
import gc
import os
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from pyallreduce import Communicator, Config, validate
from pyallreduce import communicator as communicator_module
from pyallreduce.errors import ExchangeTimeout, PyallreduceError
from pyallreduce.exchange import Exchange
from pyallreduce.integrations import adapter as slots
from pyallreduce.integrations.adapter import SlotAdapter
from pyallreduce.reasons import Code, Reason
from pyallreduce.reference import rank_order_sum
from pyallreduce.slab import Slabs
from pyallreduce.wire import FRAME_BYTES
from pyallreduce.worker import Context

SMALL = {"slab_bytes": 4 << 20, "timeout_ms": 20_000, "exchange_timeout_ms": 30_000}


def communicator(context: Context, **config: Any) -> Communicator:
    device = "cpu" if context.gpu is None else f"cuda:{context.gpu}"
    return Communicator(device=device, config=Config(**{**SMALL, **config}))


def outcome(call: Callable[[], object]) -> list[str]:
    """The name and text of the error that a call ends in, or ["none", ""]."""
    try:
        call()
    except PyallreduceError as error:
        return [type(error).__name__, str(error)]
    return ["none", ""]


def works(comm: Communicator, elements: int = 1000) -> bool:
    """Whether a good call gives the right sum."""
    x = torch.full((elements,), float(comm.rank + 1), device=comm.device)
    total = comm.world_size * (comm.world_size + 1) / 2
    result = comm.all_reduce(x)
    if comm.device.type == "cuda":
        torch.cuda.synchronize(comm.device)
    comm.check()
    return bool((result == total).all())


def mismatch(context: Context, options: dict[str, Any]) -> list[Any]:
    """Rank 1 makes another call than the rest; afterwards all recover."""
    with communicator(context) as comm:
        before = works(comm)
        dist.barrier()  # check() of the good call would hear of a faster rank's bad one
        different = context.rank == 1
        elements = options.get("elements", 1000) if different else 1000
        dtype = torch.float16 if different and options.get("dtype") else torch.float32
        algorithm = "two_shot" if different and options.get("algorithm") else "one_shot"
        tag = 7 if different and options.get("tag") else 0
        x = torch.ones(elements, dtype=dtype, device=comm.device)
        out = torch.zeros_like(x)
        kind, text = outcome(lambda: comm.all_reduce(x, out=out, algorithm=algorithm, tag=tag))
        poisoned = not bool((out > 0).any())
        again, _ = outcome(lambda: comm.all_reduce(x))
        comm.recover()
        return [before, kind, text, poisoned, again, works(comm), comm.stats().aborts]


def absent(context: Context, options: dict[str, Any]) -> list[Any]:
    """Rank 1 skips a call: the others give up at the deadline, and name it."""
    with communicator(context, timeout_ms=options["timeout_ms"]) as comm:
        kind, text, peer = "none", "", -1
        if context.rank != 1:
            try:
                comm.all_reduce(torch.ones(1000), algorithm=options["algorithm"])
            except PyallreduceError as error:
                kind, text, peer = type(error).__name__, str(error), getattr(error, "peer", -1)
        comm.recover()
        return [kind, text, peer, works(comm)]


def abort_behind_refusal(context: Context, _options: dict[str, Any]) -> list[list[str]]:
    """Rank 1 skips a call, in which rank 0 gives up, and refuses its next one; then all check."""
    with communicator(context, timeout_ms=300) as comm:
        x = torch.ones(64)
        comm.all_reduce(x)
        comm.check()
        dist.barrier()
        if context.rank == 0:
            outcome(lambda: comm.all_reduce(x))
        dist.barrier()
        if context.rank == 1:
            outcome(lambda: comm.all_reduce(x, op="median"))
        dist.barrier()
        seen = [outcome(comm.check), outcome(lambda: comm.all_reduce(x))]
        dist.barrier()
        comm.recover()
        return [*seen, [str(works(comm)), ""]]


def recovery_vetoed(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Rank 1 refuses a call, and finds the kernels unfit when all recover; then a graph of before
    is replayed: a launch that the host does not see."""
    with communicator(context) as comm:
        native, x, out = comm._native, torch.ones(64), torch.zeros(64)
        assert native is not None
        launch = native._launch(x, native.plan(256))
        outcome(lambda: comm.all_reduce(x, op="median" if context.rank == 1 else "sum"))
        found = Reason(Code.KERNEL_MISMATCH, "made up") if context.rank == 1 else Reason(Code.OK)
        with mock.patch.object(validate, "first_calls", return_value=found):
            comm.recover()
        launch(x.data_ptr(), out.data_ptr(), 0, 0)
        decision = [comm.decision.backend, comm.decision.reason.code.value]
        counts = [comm.plan(256), comm.stats().aborts]
        return [*decision, bool(out.isnan().all()), works(comm), *counts]


def another_default_device(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Start-up, a refusal's new generation and recovery where tensors are made elsewhere."""
    x = torch.ones(64)
    with torch.device("meta"), communicator(context) as comm:
        refused = outcome(lambda: comm.all_reduce(x, op="median" if context.rank else "sum"))[0]
        again = comm.all_reduce(x).tolist() == [context.world] * 64
        comm.recover()
        right = comm.all_reduce(x).tolist() == [context.world] * 64
        part = torch.ones(8, 16, device="cpu")[:, :8]  # which is judged at length
        right = right and bool((comm.all_reduce(part, out=part) == context.world).all())
        return [comm.decision.backend, refused, again, right]


def slot(context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    """An engine's slot: what a compiled graph expects of a result, and how long a wait lasts."""
    with communicator(context) as comm, mock.patch.object(Slabs, "set_deadline") as deadlines:
        adapter = SlotAdapter(comm)
        patient = [call.args[0] for call in deadlines.call_args_list]
        adapter.settle()
        settled = [call.args[0] for call in deadlines.call_args_list]
        deadlines.reset_mock()
        adapter.settle()
        again = deadlines.call_count
        with adapter.capture():
            pass
        adapter.settle()
        captured = [call.args[0] for call in deadlines.call_args_list]
        base = torch.arange(60.0).view(5, 12)
        found = {}
        for name, x in {"whole": base, "turned": base.t(), "in part": base[:, ::2]}.items():
            y = adapter.all_reduce(x)
            strides = y.stride() == torch.empty_like(x).stride()
            found[name] = [strides, bool(torch.equal(y, x * context.world))]
        adapter.close()
        told = {"patient": patient, "settled": settled, "again": again, "captured": captured}
        return {**told, **found}


def dropped_slot(context: Context, _options: dict[str, Any]) -> list[int]:
    """How many slots a step goes through: of one that is open, dropped, and closed."""
    with communicator(context) as first, communicator(context) as second:
        dropped, closed = SlotAdapter(first), SlotAdapter(second)
        counts = [len(slots._slots())]
        del dropped
        counts.append(len(slots._slots()))
        closed.close()
        return [*counts, len(slots._slots())]


def left(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Rank 1 leaves while rank 0 waits for it, and closes later."""
    with communicator(context) as comm:
        dist.barrier()
        since = time.monotonic()
        if context.rank == 1:
            time.sleep(0.3)
            comm.leave()
            comm.leave()
            dist.barrier()
            return []
        found = outcome(lambda: comm.all_reduce(torch.ones(64)))
        dist.barrier()
        return [*found, time.monotonic() - since]


def away(context: Context, _options: dict[str, Any]) -> list[list[Any]]:
    """Rank 1 does not come to an exchange: what the others say of it, and once more."""
    exchange = Exchange(None, 1000)
    found = []
    for _ in range(0 if context.rank == 1 else 2):
        since = time.monotonic()
        try:
            exchange.gather(bytes(FRAME_BYTES), "roll call")
        except ExchangeTimeout as error:
            found.append([error.peer, str(error), time.monotonic() - since])
    time.sleep(3 if context.rank == 1 else 0)
    return found


def a_companion_in_time(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Rank 1 does not come to make the group that carries frames."""
    exchange = Exchange(None, 500)
    if context.rank == 1:
        time.sleep(3)
        return ["none", "", 0.0]
    since = time.monotonic()
    return [*outcome(lambda: exchange.companion("gloo")), time.monotonic() - since]


def forked(context: Context, options: dict[str, Any]) -> list[int]:
    """How a child of each rank ends that does with the parent's communicator what it should not."""
    comm = communicator(context)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        # Its stack may be that of a thread of the parent, which is not here.
        threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
        try:
            _meddle(comm, options["how"])
        except BaseException:
            traceback.print_exc()
            os._exit(9)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    right = works(comm)
    dist.barrier()
    if options["how"] != "exit":
        comm.close()
    return [status, int(right)]


def _meddle(comm: Communicator, how: str) -> None:
    if how == "close":
        comm.close()
        comm.close()
    elif how == "exit":
        atexit._run_exitfuncs()
    else:
        slabs = comm._native._slabs if comm._native else None
        comm._native = None
        del slabs
        gc.collect()


def closed_under_a_call(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Rank 1 stays away; rank 0 closes while a thread of its own waits in the call; then rank 1
    comes."""
    comm = communicator(context)
    assert works(comm)
    dist.barrier()
    seen: list[str] = []
    since = time.monotonic()
    if context.rank == 0:
        waits = threading.Thread(
            target=lambda: seen.extend(outcome(lambda: comm.all_reduce(torch.ones(64))))
        )
        waits.start()
        time.sleep(0.3)
        native = comm._native
        assert native is not None
        comm.close()
        waits.join()
        seen.extend(outcome(native.check))
    took = time.monotonic() - since
    dist.barrier()
    if context.rank == 1:
        seen = outcome(lambda: comm.all_reduce(torch.ones(64)))
        dist.barrier()
        comm.close()
        return seen
    dist.barrier()
    return [*seen[::2], took]


def no_fallback(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Rank 0 can't have its fallback, after all have agreed on the native path; it keeps the error
    and all that hangs by it. What rank 1's first call is told, and when."""
    kept: list[BaseException] = []
    if context.rank == 0:
        with mock.patch.object(communicator_module, "Fallback", side_effect=OSError("no fallback")):
            try:
                communicator(context)
            except OSError as error:
                kept.append(error)
        dist.barrier()
        return [len(kept)]
    with communicator(context) as comm:
        since = time.monotonic()
        kind, text = outcome(lambda: comm.all_reduce(torch.ones(64)))
        took = time.monotonic() - since
        dist.barrier()
        return [kind, text, took]


def compiled(context: Context, _options: dict[str, Any]) -> list[Any]:
    with communicator(context) as comm:

        @torch.compile(fullgraph=True, backend="aot_eager")
        def step(x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = comm.all_reduce(x * 2)
            return y + 1

        x = torch.arange(100, dtype=torch.float32) * (context.rank + 1)
        total = torch.arange(100, dtype=torch.float32) * 2 * sum(range(1, context.world + 1)) + 1
        return [bool(torch.equal(step(x), total)), comm.stats().calls]


def unused(context: Context, options: dict[str, Any]) -> list[Any]:
    """Rank 1's graph has no use for the sum."""
    with communicator(context) as comm:

        @torch.compile(fullgraph=True, backend=options["backend"])
        def step(x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = comm.all_reduce(x)
            return y + 1 if context.rank == 0 else x + 1

        value = float(step(torch.ones(8))[0])
        calls = comm.stats().calls
        values: list[Any] = [None] * context.world
        dist.all_gather_object(values, value)
        return [values, calls]


def group_destroyed(context: Context, options: dict[str, Any]) -> list[str]:
    comm = communicator(context, exchange_timeout_ms=3_000)
    works(comm)
    dist.barrier()
    if options["who"] == "all" or context.rank == 1:
        dist.destroy_process_group()
    kind, _ = outcome(comm.recover)
    if not dist.is_initialized():  # worker.py destroys one behind the target
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    comm.close()
    return [kind, comm.decision.backend]


def other_fallback(context: Context, _options: dict[str, Any]) -> list[str]:
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine, everybody = pairs[context.rank // 2], dist.group.WORLD
    return outcome(
        lambda: Communicator(mine, "cpu", config=Config(**SMALL), fallback_group=everybody)
    )


def subgroups(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Two groups of two ranks, and two communicators used in turn."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine = context.rank // 2
    config = Config(**SMALL)
    foreign = outcome(lambda: Communicator(pairs[1 - mine], "cpu", config=config))
    with (
        Communicator(pairs[mine], "cpu", config=config) as pair,
        communicator(context) as everybody,
    ):
        results = []
        for _ in range(20):
            results.append(float(pair.all_reduce(torch.tensor([context.rank + 1.0]))))
            results.append(float(everybody.all_reduce(torch.tensor([context.rank + 1.0]))))
        return [foreign[0], sorted(set(results))]


def chunks(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Messages of several chunks through a small slab, bit for bit, by both algorithms."""
    with communicator(context, slab_bytes=2 << 20) as comm:
        right = []
        for dtype in (torch.float32, torch.bfloat16):
            for algorithm in ("one_shot", "two_shot"):
                elements = 3 * comm.capacity(algorithm) // dtype.itemsize + 13
                inputs = [_random(r, elements, dtype) for r in range(context.world)]
                x = inputs[context.rank].clone()
                comm.all_reduce(x, out=x, algorithm=algorithm)
                right.append(bool(torch.equal(x, rank_order_sum(inputs))))
        return right


def laps(context: Context, _options: dict[str, Any]) -> list[bool]:
    """Messages of one to four laps of one launch, bit for bit, with short calls in between."""
    with communicator(context, slab_bytes=12 << 20) as comm:
        right = []
        for count in (2, 4, 1, 3):
            elements = count * comm.capacity("two_shot") // 4 - 5
            inputs = [_random(r, elements, torch.float32) for r in range(context.world)]
            x = inputs[context.rank].clone()
            comm.all_reduce(x, out=x, algorithm="two_shot", tag=count)
            right.append(bool(torch.equal(x, rank_order_sum(inputs))))
            comm.all_reduce(torch.ones(3))
        return right


def halves(context: Context, _options: dict[str, Any]) -> list[int]:
    """All 65536 patterns of both half types, summed with shifted copies of themselves."""
    wrong = []
    with communicator(context) as comm:
        for dtype in (torch.float16, torch.bfloat16):
            everything = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
            count = 0
            for shift in (0, 1, 77, 1024, 4999, 32768):
                inputs = [everything.roll(shift * r) for r in range(context.world)]
                result = comm.all_reduce(inputs[context.rank])
                expected = rank_order_sum(inputs)
                same = result.view(torch.int16) == expected.view(torch.int16)
                count += int((~(same | (result.isnan() & expected.isnan()))).sum())
            wrong.append(count)
    return wrong


def decisions(context: Context, options: dict[str, Any]) -> list[str]:
    """How construction ends when one rank differs."""
    config: dict[str, Any] = {}
    if options["case"] == "diverged":
        config["slab_bytes"] = (4 << 20) + context.rank * 4096
    if options["case"] == "memory" and context.rank == 1:
        limit = 64 << 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    if options.get("native"):
        config["backend"] = "native"
    try:
        with communicator(context, **config) as comm:
            return [comm.decision.backend, str(comm.decision.reason), str(works(comm))]
    except PyallreduceError as error:
        return [type(error).__name__, str(error), ""]


def life(context: Context, _options: dict[str, Any]) -> list[Any]:
    comm = communicator(context)
    memory = sum(size for _, size in comm.memory())
    working = works(comm)
    comm.close()
    comm.close()
    plan = comm.plan_of(4)
    calls = (lambda: comm.all_reduce(torch.ones(1)), lambda: comm.run_plan(torch.ones(4), plan))
    return [working, [outcome(call)[0] for call in (*calls, comm.recover)], memory]


def _random(rank: int, elements: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(elements, generator=generator).to(dtype)
