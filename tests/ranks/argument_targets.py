# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_communicator.py do with unusual arguments, eager and compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, ClassVar
from unittest import mock

import torch
import torch.distributed as dist
from communicator_targets import communicator, outcome, works
from torch._subclasses.fake_tensor import FakeTensorMode

from pyallreduce import Communicator, arguments
from pyallreduce.errors import PyallreduceError
from pyallreduce.worker import Context


class Wrapper(torch.Tensor):
    """A tensor around another, as DTensor is, without memory of its own; nobody works on it."""

    @staticmethod
    def __new__(cls, local: torch.Tensor) -> Wrapper:
        found: Wrapper = torch.Tensor._make_wrapper_subclass(cls, local.shape, dtype=local.dtype)
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


class Foreign:
    """An array of a library that has no empty_like; with no GPU here torch can't view it."""

    __cuda_array_interface__: ClassVar[dict[str, Any]] = {
        "shape": (64,),
        "typestr": "<f4",
        "data": (0, False),
        "version": 3,
    }


def bad_calls(comm: Communicator) -> dict[str, Callable[[], object]]:
    good = torch.ones(64)
    base = torch.ones(128)
    rows = torch.ones(8).expand(8, 8)
    with torch.inference_mode():
        inferred = torch.ones(65)
    return {
        "sparse": lambda: comm.all_reduce(torch.eye(4).to_sparse()),
        "grad": lambda: comm.all_reduce(torch.ones(4, requires_grad=True)),
        "device": lambda: comm.all_reduce(torch.ones(4, device="meta")),
        "list": lambda: comm.all_reduce([1.0, 2.0]),
        "integer natively": lambda: comm.all_reduce(good.int(), algorithm="one_shot"),
        "op": lambda: comm.all_reduce(good, op="median"),
        "out shape": lambda: comm.all_reduce(good, out=torch.ones(65)),
        "out dtype": lambda: comm.all_reduce(good, out=torch.ones(64, dtype=torch.float16)),
        "overlap": lambda: comm.all_reduce(base[:100], out=base[28:]),
        "tag": lambda: comm.all_reduce(good, tag=-1),
        "no tag": lambda: comm.all_reduce(good, tag=None),  # type: ignore[arg-type]
        "ops": lambda: comm.all_reduce(good, op=["sum"]),  # type: ignore[arg-type]
        "wrapper": lambda: comm.all_reduce(Wrapper(good)),
        "out wrapper": lambda: comm.all_reduce(good, out=Wrapper(good)),
        "out grad": lambda: comm.all_reduce(good, out=torch.ones(64, requires_grad=True)),
        "out expanded": lambda: comm.all_reduce(good, out=torch.ones(1).expand(64)),
        "expanded in place": lambda: comm.all_reduce(rows, out=rows),
        "foreign": lambda: comm.all_reduce(Foreign()),
        "foreign with out": lambda: comm.all_reduce(Foreign(), out=Foreign()),
        "zeros": lambda: comm.all_reduce(torch._efficientzerotensor((64,))),
        "vmap": lambda: torch.func.vmap(comm.all_reduce)(torch.ones(2, 32)),
        "fake": lambda: faked(lambda: comm.all_reduce(good)),
        "fake alone": lambda: faked(lambda: comm.all_reduce(good), takes_real=False),
        "out inference": lambda: comm.all_reduce(good, out=inferred[1:]),
        "fake copy": lambda: faked(lambda: comm.all_reduce(base[1:65], out=good)),
    }


def faked(call: Callable[[], object], *, takes_real: bool = True) -> object:
    """Of a real tensor, where new ones have no memory."""
    with FakeTensorMode(allow_non_fake_inputs=takes_real):
        return call()


def refuse_twice(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Rank 1 refuses two calls behind each other where new tensors have no memory: the second one
    starts a generation there."""
    x = torch.ones(64)
    with communicator(context) as comm:

        def call() -> object:
            return comm.all_reduce(x)

        told = [outcome(lambda: faked(call) if context.rank else call())[0] for _ in range(2)]
        return [*told, works(comm)]


def refuse_on_one(context: Context, options: dict[str, Any]) -> dict[str, Any]:
    with communicator(context) as comm:
        seen = {}
        for name, bad in bad_calls(comm).items():
            call = (
                bad if context.rank == options["who"] else lambda: comm.all_reduce(torch.ones(64))
            )
            seen[name] = [*outcome(call), works(comm)]
        return seen


def without_memory(context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    """Rank 1 has no memory for what a call needs beside its arguments."""
    plain, strided, wide = torch.ones(64), torch.ones(8, 8).t(), torch.ones(64, 2)
    no_memory = torch.OutOfMemoryError("none left")
    calls: dict[str, tuple[object, str, Callable[[Communicator], object]]] = {
        "result": (torch, "empty_like", lambda comm: comm.all_reduce(plain)),
        "result of strided": (torch, "empty_like", lambda comm: comm.all_reduce(strided)),
        "copy of x": (torch.Tensor, "clone", lambda comm: comm.all_reduce(strided, out=strided)),
        "copy for out": (torch, "empty_like", lambda comm: comm.all_reduce(plain, out=wide[:, 0])),
    }
    with communicator(context) as comm:
        seen = {}
        for name, (where, what, call) in calls.items():
            lacks = mock.patch.object(where, what, side_effect=no_memory)
            with lacks if context.rank == 1 else contextlib.nullcontext():
                try:
                    call(comm)
                    kind, text = "none", ""
                except (RuntimeError, PyallreduceError) as error:
                    kind, text = type(error).__name__, str(error)
            seen[name] = [kind, text, works(comm)]
        return seen


def without_memory_beside_gloo(context: Context, _options: dict[str, Any]) -> list[Any]:
    """Rank 1 has no memory for the result of a call that gloo carries, and tries again."""
    with communicator(context) as comm:
        x = torch.full((64,), float(context.rank))
        if context.rank == 1:
            no_memory = torch.OutOfMemoryError("none left")
            with (
                mock.patch.object(torch, "empty_like", side_effect=no_memory),
                contextlib.suppress(torch.OutOfMemoryError),
            ):
                comm.all_reduce(x, op="max")
        largest = comm.all_reduce(x, op="max").unique().tolist()
        return [largest, *outcome(lambda: comm.all_reduce(x)), works(comm)]


def another_error(context: Context, _options: dict[str, Any]) -> list[bool]:
    """A result can't be made on rank 1, for another reason: the peer is not told of a lack."""
    with communicator(context, timeout_ms=500) as comm:
        works(comm)
        dist.barrier()
        if context.rank == 1:
            mistaken = mock.patch.object(torch, "empty_like", side_effect=RuntimeError("a mistake"))
            with mistaken, contextlib.suppress(RuntimeError):
                comm.all_reduce(torch.ones(64))
            text = ""
        else:
            _, text = outcome(lambda: comm.all_reduce(torch.ones(64)))
        comm.recover()
        return ["had no memory" in text, works(comm)]


def replay_after_refusal(context: Context, _options: dict[str, Any]) -> list[str]:
    """Rank 1 refuses a call, all are told, and then make one as a graph's replay does: unseen by
    the host. Its output is poison."""
    with communicator(context) as comm:
        x = torch.ones(64)
        bad, good = (lambda: comm.all_reduce(x, op="median")), (lambda: comm.all_reduce(x))
        told, _ = outcome(bad if context.rank == 1 else good)
        dist.barrier()
        native, out = comm._native, torch.zeros(64)
        assert native is not None
        state = native._launch(x, native.plan(256))(x.data_ptr(), out.data_ptr(), 0, 0)
        checked, _ = outcome(comm.check)
        return [told, str(state != 0), checked]


def refuse_on_all(context: Context, options: dict[str, Any]) -> dict[str, Any]:
    with communicator(context, backend=options["backend"]) as comm:
        return {name: [*outcome(bad), works(comm)] for name, bad in bad_calls(comm).items()}


def negated(context: Context, options: dict[str, Any]) -> dict[str, list[float]]:
    """Tensors whose bytes are to be negated before they are values, on one rank alone."""
    with communicator(context, backend=options["backend"]) as comm:
        ones = torch.ones(8)
        x = torch._neg_view(ones) if context.rank == 1 else ones
        out = torch._neg_view(torch.zeros(8)) if context.rank == 1 else torch.zeros(8)
        seen = {"in": comm.all_reduce(x), "out": comm.all_reduce(torch.ones(8), out=out)}
        seen["largest"] = comm.all_reduce(x, op="max")
        seen["in place"] = comm.all_reduce(x, out=x)
        return {name: result.unique().tolist() for name, result in seen.items()}


def plain_calls(context: Context, _options: dict[str, Any]) -> dict[str, list[bool]]:
    """Of calls of plain tensors: whether nothing judged them further, and the sums are right."""
    wide = torch.zeros(2 * 96)
    ways: dict[str, dict[str, Any]] = {
        "new": {},
        "in place": {"out": "x"},
        "apart": {"out": torch.zeros(96)},
        "beside": {"out": wide[96:]},
        "one_shot": {"out": "x", "algorithm": "one_shot"},
        "two_shot": {"out": torch.zeros(96), "algorithm": "two_shot"},
        "auto": {"algorithm": "auto"},
        "tag": {"tag": 7},
    }
    seen = {}
    with communicator(context) as comm:
        for name, way in ways.items():
            x = wide[:96].fill_(context.rank + 1)
            judged = mock.patch.object(arguments, "complaint", wraps=arguments.complaint)
            with judged as complaint:
                given = {**way, "out": x} if way.get("out") == "x" else way
                result = comm.all_reduce(x, **given)
            own = given.get("out")
            right = bool((result == 3).all()) and (own is None or result is own)
            seen[name] = [not complaint.called, right and comm.stats().fallbacks == {}]
    return seen


def of_compiled(call: Callable[..., object], *arguments: object) -> list[str]:
    """As outcome; torch has an error of its own for one that is raised while it traces."""
    try:
        return outcome(lambda: call(*arguments))
    except torch._dynamo.exc.Unsupported as error:
        return [type(error).__name__, str(error)]


def compiled_arguments(context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    """What compiled calls make of a tag, of an algorithm, and of `accepts`."""
    from torch._dynamo.testing import CompileCounter

    with communicator(context) as comm:
        compilations = CompileCounter()

        @torch.compile(fullgraph=True, backend=compilations)
        def tagged(x: torch.Tensor, tag: int) -> torch.Tensor:
            y: torch.Tensor = comm.all_reduce(x, tag=tag)
            return y

        @torch.compile(fullgraph=True, backend="aot_eager")
        def natively(x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = comm.all_reduce(x, algorithm="two_shot")
            return y

        @torch.compile(fullgraph=True, backend="aot_eager")
        def accepted(x: torch.Tensor) -> torch.Tensor:
            return x + 1 if comm.accepts(x) else x

        native, x = comm._native, torch.ones(8)
        assert native is not None
        with mock.patch.object(native, "plan", wraps=native.plan) as plan:
            seen: dict[str, Any] = {"two_shot": float(natively(x)[0])}
        seen["algorithms"] = [call.args[1] for call in plan.call_args_list]
        seen["accepts"] = float(accepted(x)[0])
        seen["integer"] = outcome(lambda: natively(x.int()))[0]
        seen["tags"] = [float(tagged(x, tag)[0]) for tag in (3, 4, 5, 6)]
        seen["compilations"] = compilations.frame_count
        for fullgraph in (True, False):
            into = torch.compile(comm.all_reduce, fullgraph=fullgraph, backend="aot_eager")
            leaf, wide, ints = torch.ones(8, requires_grad=True), torch.empty(2, 8), x.int()
            tries = [(leaf, None), (leaf, leaf), (x, leaf), (x, wide), (x, ints)]
            seen[f"refused, {fullgraph}"] = [of_compiled(into, *pair) for pair in tries]
        seen["refused tag"] = outcome(lambda: tagged(x, -1))[0]
        dist.barrier()
        seen["other tag"] = outcome(lambda: tagged(x, 7 + context.rank))
        return seen


def fallbacks(context: Context, _options: dict[str, Any]) -> dict[str, Any]:
    with communicator(context) as comm:
        x = torch.tensor([context.rank + 1, 4, -3])
        results = {
            op: comm.all_reduce(x, op=op).tolist() for op in ("sum", "max", "min", "product")
        }
        results["avg"] = comm.all_reduce(x.float(), op="avg").tolist()
        results["double"] = comm.all_reduce(x.double()).tolist()
        whole = comm.all_reduce(torch.complex(x.float(), x.float()), op="avg")
        results["complex avg"] = [whole.real.tolist(), whole.imag.tolist()]
        results["integer avg"] = comm.all_reduce(x, op="avg").tolist()
        results["bool avg"] = outcome(lambda: comm.all_reduce(x > 0, op="avg"))
        results["accepts"] = [
            comm.accepts(x.float()),
            comm.accepts(x),
            comm.accepts(x.float(), "max"),
            comm.accepts(Wrapper(x.float())),
            comm.accepts(torch.ones(3, requires_grad=True)),
        ]
        with torch.no_grad():
            results["accepts without grad"] = comm.accepts(torch.ones(3, requires_grad=True))
        stats = comm.stats()
        results["stats"] = [stats.calls, stats.fallbacks]
        comm.all_reduce(x.float())
        results["native calls"] = [comm.stats().calls, comm.stats().bytes]
        return results
