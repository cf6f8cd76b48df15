#!/usr/bin/env python3
# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The story on GPUs: vLLM's server starts, answers, goes down, and does so again.

    python3 bench/vllm_story_gpu.py --cycles 4 --json $OUT/story.json
    python3 bench/vllm_story_gpu.py --cycles 4 --mode graphs --expandable --json $OUT/graphs.json
    python3 bench/vllm_story_gpu.py --cycles 1 --lost    # the fallback: NCCL, in the same start
    python3 bench/vllm_story_gpu.py --cycles 1 --raises  # rank 1 raises, which vLLM does not hear
    python3 bench/vllm_story_gpu.py --cycles 1 --first 1 --expect $OUT/story.json

Each cycle goes down another way: by Ctrl-C, then by the SIGKILL of one worker, in turn. A start
takes 30 to 100 s and has a deadline; no cycle is begun that `--budget` would cut off. Ends with 1
if any cycle failed, answered otherwise than is to be expected, or had its all-reduces carried by
another. The answer to expect is that of the record in `--expect`, else the first one of this run:
a run of one cycle alone compares it with nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "tests" / "integrations"))
from processes import LOST, RAISES, second_plugin  # noqa: E402
from server import FAILED, Server, chat_model, kill, serving  # noqa: E402
from vllm_gpu import SETTINGS  # noqa: E402

MODES = {
    "eager": ("--enforce-eager",),
    "graphs": (
        "--compilation-config",
        '{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4]}',
    ),
    "compiled": (),
}
# Who carries all-reduces, and how a worker ended.
TOLD = re.compile(r"the all-reduces|pyallreduce ends this worker|AllReduceAborted: rank|died unexp")
# Said in bytes, so that servers may start beside each other on the same GPUs.
MEMORY = ("--gpu-memory-utilization", "0.3", "--kv-cache-memory-bytes", str(1 << 30))


def cycle(number: int, model: Path, environment: dict[str, str], mode: str, log: Path) -> Any:
    """One life of a server, and what was seen of it."""
    with serving(model, environment, log, (*MODES[mode], *MEMORY)) as server:
        begin = time.monotonic()
        answer = server.chat(tokens=32)
        first = time.monotonic() - begin
        down, seconds = end(server, number, environment.get("FAULT_FILE"))
        told = [line for line in server.text().splitlines() if TOLD.search(line)]
    return {
        "cycle": number,
        "up_s": round(server.seconds, 1),
        "first_answer_s": round(first, 2),
        "down": down,
        "gone_s": round(seconds, 1),
        "answer": answer,
        "told": told[:4],
    }


def end(server: Server, number: int, fault: str | None) -> tuple[str, float]:
    """How a server goes down, and the seconds until nothing of it is left.

    With a file for `fault` rank 1 raises in the next request's first call.

    Raises:
        AssertionError: the request was answered all the same.
    """
    if fault:
        Path(fault).touch()
        begin = time.monotonic()
        try:
            server.chat(deadline_s=120)
        except FAILED:
            ended = time.monotonic() - begin
            return f"an error of rank 1: the request ended {ended:.1f} s later", server.gone()
        raise AssertionError("the request was answered")
    if number % 2 == 0:
        return "Ctrl-C", server.stop()
    kill(server.workers()[number // 2 % 2])
    return f"SIGKILL of worker {number // 2 % 2}", server.gone()


def expected(file: Path | None) -> str | None:
    """The answer in an earlier result file; None without one.

    Raises:
        SystemExit: the file has no answer, or several.
    """
    if file is None:
        return None
    records = json.loads(file.read_text(encoding="utf-8"))["records"]
    answers = {record["answer"] for record in records if "answer" in record}
    if len(answers) != 1:
        raise SystemExit(f"{file} has {len(answers)} different answers; one is to be expected")
    answer: str = answers.pop()
    return answer


def sound(found: Any, answer: str | None, options: argparse.Namespace) -> bool:
    """Whether a cycle ended well, gave this answer, and said who carried its all-reduces as is to
    be expected."""
    if "failed" in found or found["answer"] != answer:
        return False
    ours = any("pyallreduce carries" in line for line in found["told"])
    return ours is not (options.stock or options.lost)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="number of the first cycle")
    parser.add_argument("--mode", choices=list(MODES), default="eager")
    parser.add_argument("--expandable", action="store_true", help="expandable_segments:True")
    parser.add_argument("--stock", action="store_true", help="vLLM without the plugin")
    parser.add_argument("--lost", action="store_true", help="rank 1 finds its writes lost")
    parser.add_argument("--raises", action="store_true", help="rank 1 raises in a request")
    parser.add_argument("--budget", type=float, default=560, help="seconds for all")
    parser.add_argument("--longest", type=float, default=140, help="seconds that a cycle may need")
    parser.add_argument("--expect", type=Path, help="an earlier result file, with the same answer")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    from pyallreduce.info import header

    answer = expected(options.expect)
    environment = {**SETTINGS, **os.environ}
    if options.expandable:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if options.stock:
        environment["VLLM_PLUGINS"] = "none"
    begin, records, failed = time.monotonic(), [], False
    with tempfile.TemporaryDirectory() as work:
        model = chat_model(Path(work) / "model", num_hidden_layers=4)
        if options.raises:
            environment["FAULT_FILE"] = str(Path(work) / "raise")
        if options.lost or options.raises:
            fault = second_plugin(Path(work) / "fault", LOST if options.lost else RAISES)
            environment["PYTHONPATH"] = f"{environment.get('PYTHONPATH', '')}{os.pathsep}{fault}"
        for number in range(options.first, options.first + options.cycles):
            if time.monotonic() - begin > options.budget - options.longest:
                print(f"cycle {number} is not begun: the budget is spent")
                break
            log = options.logs / f"story-{options.mode}-{number}.log"
            try:
                found = cycle(number, model, environment, options.mode, log)
            except Exception as error:  # of whatever class: the next cycle has its turn
                failure = f"{type(error).__name__}: {error}"
                found = {"cycle": number, "failed": failure[-3000:]}
            records.append(found)
            answer = found.get("answer") if answer is None else answer
            failed = failed or not sound(found, answer, options)
            print(json.dumps(found), flush=True)
            if options.json:
                content = {"header": header(" ".join(sys.argv)), "records": records}
                options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if failed or not records else 0


if __name__ == "__main__":
    sys.exit(main())
