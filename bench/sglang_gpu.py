#!/usr/bin/env python3
# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's server on two GPUs: with our plugin, with its own custom all-reduce, and with NCCL.

    python3 bench/sglang_gpu.py --json $OUT/sglang.json
    python3 bench/sglang_gpu.py --backends ours --lost --expect $OUT/sglang.json    # a broken edge
    python3 bench/sglang_gpu.py --backends ours --kill --expect $OUT/sglang.json    # a worker dies
    python3 bench/sglang_gpu.py --cpu FOLDER --backends ours nccl    # bench/sglang_on_cpu.py: gloo

Starts the server once for each backend named, with a deadline, asks it, and ends it: `ours` is the
plugin as users get it, `stock` is SGLang's own custom all-reduce, `nccl` is without any. Needs
SGLang and pyallreduce importable (bench/sglang_session.sh unpacks the former on a GPU machine). Of
each start and batch a record:

* `tokens`: a digest of the greedy tokens; the same for all backends, as the sum of two is.
* `step_ms`: a decode step by the client's clock, from the difference of a long and a short answer.
* `calls`, of ours: calls of each rank so far. A graph's are counted when it is captured.
* `told`: who carries the all-reduces, in the server's own log.

With `--kill` worker 1 gets SIGKILL in a request: how that ended, and after how long. Ends with 1 if
a server did not start, gave other tokens, had its all-reduces carried by another than is to be
expected, or did not end the request of a worker that died with an error and a line that names it.
The tokens to expect are those of the record in `--expect`, else the first ones of this run: a run
of one backend alone compares them with nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "integrations"))
sys.path.insert(0, str(HERE))
import sglang_on_cpu  # noqa: E402
from processes import LOST, random_weights, second_plugin, session, started, tiny_model  # noqa: E402
from server import free_port, kill, post, until_healthy  # noqa: E402

BACKENDS = ("ours", "stock", "nccl")
LENGTHS, REPEATS = (16, 144), 3  # tokens, and how often
LENGTHS_ON_CPU, REPEATS_ON_CPU = (4, 20), 2
SIZES = {"hidden_size": 1024, "intermediate_size": 2048, "head_dim": 128}
SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 8}
PLUGINS = "sglang.srt.plugins"
# Counts the calls of each rank in a file of its own.
COUNTS = """
def register():
    import mmap, os, struct
    from pyallreduce.integrations.adapter import SlotAdapter
    sound, pages = SlotAdapter.all_reduce, {}
    def page_of(rank):
        with open(f"{os.environ['COUNTS']}-{rank}", "w+b") as file:
            file.truncate(8)
            return mmap.mmap(file.fileno(), 8)
    def all_reduce(slot, *arguments, **options):
        rank = slot.communicator.rank
        page = pages.get(rank) or pages.setdefault(rank, page_of(rank))
        struct.pack_into("q", page, 0, struct.unpack_from("q", page)[0] + 1)
        return sound(slot, *arguments, **options)
    SlotAdapter.all_reduce = all_reduce
"""
GPUS = (
    *("--attention-backend", "triton", "--mem-fraction-static", "0.3"),
    *("--cuda-graph-max-bs-decode", "16"),
)
EAGER = ("--disable-decode-cuda-graph", "--disable-prefill-cuda-graph")
TOLD = re.compile(
    r"the all-reduces|comes first for|pyallreduce (leaves|ends|could)|AllReduceAborted: |died \(SIG"
    r"|Setup Custom allreduce failed"
)
FAILED = (OSError, http.client.HTTPException, ValueError)
ENDLESS = "without an end"


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    leader: int
    port: int
    log: Path
    seconds: float  # from start to healthy

    def tokens(self, batch: int, count: int, deadline_s: float = 60) -> list[list[int]]:
        """The greedy tokens of a batch of requests, `count` each."""
        content = {
            "input_ids": [[3 + i, 7, 11 + i, 5] for i in range(batch)],
            "sampling_params": {"temperature": 0, "max_new_tokens": count, "ignore_eos": True},
        }
        answers = post(f"http://127.0.0.1:{self.port}/generate", content, deadline_s)
        found = [list(one["output_ids"]) for one in answers]
        if [len(one) for one in found] != [count] * batch:
            raise RuntimeError(f"{batch} requests of {count} tokens got {list(map(len, found))}")
        return found

    def worker(self, rank: int) -> int:
        """The process id of a rank, by the title that SGLang gives it."""
        for pid in session(self.leader):
            title = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            if f"scheduler_TP{rank}" in title:
                return pid
        raise RuntimeError(f"there is no worker of rank {rank}")

    def gone(self, deadline_s: float) -> float:
        """Seconds until nothing of the server is left."""
        begin = time.monotonic()
        while left := session(self.leader):
            if time.monotonic() - begin > deadline_s:
                raise TimeoutError(f"still there after {deadline_s:.0f} s: {left}")
            time.sleep(0.1)
        return time.monotonic() - begin

    def told(self) -> list[str]:
        lines = self.log.read_text(errors="replace").splitlines()
        return [line[:600] for line in lines if TOLD.search(line)][:6]


@contextmanager
def serving(
    model: Path, environment: Mapping[str, str], log: Path, arguments: list[str], deadline_s: float
) -> Iterator[Server]:
    """A server that has become healthy; on leaving nothing of it is left.

    Raises:
        AssertionError: it has ended, or was not healthy in time.
    """
    port = free_port()
    command = [
        *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"),
        *("--skip-tokenizer-init", "--disable-radix-cache", "--random-seed", "0"),
        *("--sampling-backend", "pytorch", "--grammar-backend", "none"),
        *arguments,
    ]
    with started(command, environment, log) as process:
        seconds = until_healthy(process, port, log, deadline_s)
        yield Server(process.pid, port, log, seconds)


def measured(
    server: Server, batch: int, lengths: tuple[int, int], repeats: int
) -> tuple[list[list[int]], float]:
    """The tokens of a long answer, and a decode step in ms."""
    short, long = lengths
    server.tokens(batch, short)
    steps, answers = [], []
    for _ in range(repeats):
        times = []
        for count in (long, short):
            begin = time.perf_counter()
            answers.append(server.tokens(batch, count))
            times.append(time.perf_counter() - begin)
        steps.append((times[0] - times[1]) / (long - short) * 1e3)
    if any(answer != answers[0] for answer in answers[2::2]):
        raise RuntimeError("the same request got other tokens")
    return answers[0], statistics.median(steps)


def killed(server: Server) -> dict[str, Any]:
    """Worker 1 gets SIGKILL in a request: how the request ended, and what was left."""
    ended: list[str] = []

    def ask() -> None:
        try:
            server.tokens(1, 1800, deadline_s=90)
            ended.append("answered")
        except FAILED as error:
            ended.append(f"{type(error).__name__}: {error}")

    request = threading.Thread(target=ask)
    request.start()
    time.sleep(0.5)
    begin = time.monotonic()
    kill(server.worker(1))
    request.join(100)
    took = time.monotonic() - begin
    return {
        "request": ended[0] if ended else ENDLESS,
        "request_s": round(took, 2),
        "gone_s": round(server.gone(60), 2),
    }


def together(parts: list[str]) -> str:
    """One plugin of several, each of which defines `register()`."""
    named = [part.replace("def register():", f"def part{i}():") for i, part in enumerate(parts)]
    calls = [f"    part{i}()" for i in range(len(parts))]
    return "\n".join([*named, "def register():", *calls, ""])


def start(
    backend: str, options: argparse.Namespace, model: Path, work: Path
) -> list[dict[str, Any]]:
    """The records of one start of the server."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COUNTS": str(work / "calls")}
    arguments = ["--tp-size", str(options.ranks)]
    parts, paths = [LOST if options.lost else COUNTS], [environment.get("PYTHONPATH", "")]
    if options.cpu:
        parts.append(sglang_on_cpu.ASKS)
        paths.insert(0, sglang_on_cpu.stand_ins(work / "stand-ins", options.cpu))
        arguments += sglang_on_cpu.ARGUMENTS
        environment |= sglang_on_cpu.ENVIRONMENT
    else:
        arguments += GPUS
        arguments += EAGER if options.mode == "eager" else ()
    if backend == "nccl":
        arguments.append("--disable-custom-all-reduce")
    if backend == "ours":
        paths.insert(0, second_plugin(work / "plugin", together(parts), PLUGINS))
    else:
        environment["SGLANG_PLUGINS"] = "none"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    lengths = LENGTHS_ON_CPU if options.cpu else LENGTHS
    repeats = REPEATS_ON_CPU if options.cpu else REPEATS
    log = options.logs / f"sglang-{options.mode}-{backend}.log"
    about = {
        "backend": backend,
        "ranks": options.ranks,
        "layers": options.layers,
        "mode": "cpu" if options.cpu else options.mode,
    }
    with serving(model, environment, log, arguments, options.deadline) as server:
        records = []
        for batch in options.batches:
            tokens, step_ms = measured(server, batch, lengths, repeats)
            digest = hashlib.sha256(repr(tokens).encode()).hexdigest()[:16]
            calls = [int.from_bytes(f.read_bytes(), "little") for f in sorted(work.glob("calls-*"))]
            found = {"batch": batch, "tokens": digest, "step_ms": round(step_ms, 4), "calls": calls}
            records.append({**about, "up_s": round(server.seconds, 1), **found})
        if options.kill:
            records[-1] |= killed(server)
        else:
            os.kill(server.leader, signal.SIGINT)
            records[-1] |= {"down": "Ctrl-C", "gone_s": round(server.gone(60), 2)}
        records[-1]["told"] = server.told()
    return records


def sound(records: list[dict[str, Any]], tokens: dict[int, str], options: Any) -> bool:
    """Whether one start gave these tokens, ended as it should, and who carries its all-reduces is
    as to be expected."""
    last = records[-1]
    if "failed" in last or any(r["tokens"] != tokens[r["batch"]] for r in records):
        return False
    told = " ".join(last["told"])
    if options.kill and (last["request"] in ("answered", ENDLESS) or "died (SIGKILL)" not in told):
        return False
    if last["backend"] == "ours":
        who = "NCCL with NCCL_P2P_DISABLE=1" if options.lost else "pyallreduce"
        return f"{who} carries" in told
    return "carries" not in told and "Setup Custom allreduce failed" not in told


def expected(file: Path | None) -> dict[int, str]:
    """The tokens of an earlier result file, by batch; empty without one."""
    if file is None:
        return {}
    records = json.loads(file.read_text(encoding="utf-8"))["records"]
    return {record["batch"]: record["tokens"] for record in records if "tokens" in record}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--mode", choices=("graphs", "eager"), default="graphs")
    parser.add_argument("--cpu", type=Path, help="on the CPU; sgl_kernel of SGLang's wheel")
    fault = parser.add_mutually_exclusive_group()
    fault.add_argument("--lost", action="store_true", help="rank 1 finds its writes lost")
    fault.add_argument("--kill", action="store_true", help="SIGKILL of worker 1 in a request")
    parser.add_argument("--deadline", type=float, default=150, help="seconds until it is healthy")
    parser.add_argument("--expect", type=Path, help="an earlier result file, with the same tokens")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    from pyallreduce.info import header

    records: list[dict[str, Any]] = []
    tokens = expected(options.expect)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        sizes = {} if options.cpu else SIZES
        layers = {"num_hidden_layers": options.layers}
        model = tiny_model(Path(folder) / "model", **layers, **sizes)
        random_weights(model)
        for number, backend in enumerate(options.backends):
            work = Path(folder) / str(number)
            work.mkdir()
            try:
                found = start(backend, options, model, work)
            except Exception as error:  # of whatever class: the next backend has its turn
                failure = f"{type(error).__name__}: {error}"
                found = [{"backend": backend, "failed": failure[-6000:]}]
            for record in found:
                if "tokens" in record:
                    tokens.setdefault(record["batch"], record["tokens"])
                print(json.dumps(record), flush=True)
            good = good and sound(found, tokens, options)
            records += found
            if options.json:  # after each: a later one that hangs takes nothing with it
                content = {"header": header(" ".join(sys.argv)), "records": records}
                options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
