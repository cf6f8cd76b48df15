#!/usr/bin/env python3
# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM on GPUs with each of three all-reduces: equal tokens, decode steps, and the calls.

    python3 bench/vllm_gpu.py --ranks 2 --layers 32 --json $OUT/vllm-2-32.json
    python3 bench/vllm_gpu.py --backends stock ours nccl ours stock    # steps differ between starts
    python3 bench/vllm_gpu.py --backends ours --sleep --json $OUT/sleep.json    # vLLM's sleep mode
    python3 bench/vllm_gpu.py --paired 32 --json $OUT/paired.json    # all in turn in one start

Starts vLLM once for each backend named (about a minute each), every start with a deadline: `ours`
is the plugin as users get it, `stock` is vLLM's own custom all-reduce, `nccl` is without any. Needs
vLLM and pyallreduce importable, and as many GPUs as ranks. A record is one start and batch; it
lacks what a start did not get to:

* `tokens`: a digest of the greedy tokens; the same for all backends where the arithmetic is the
  same (2 ranks). Weights are of our own, since `dummy` gives every rank the same, and all requests
  of a batch start in one step, so that every start runs the same shapes.
* `step_ms`: a decode step, from the difference between a long and a short generation.
* `kernel_us`: per all-reduce of decode steps the shortest kernel over the ranks, then the median,
  so that waiting for a late peer does not count.
* `gpu_ms`: a decode step on the GPU, from the start of its first all-reduce to the end of its last,
  the shorter of the ranks, then the median.
* `micro_us`: one all-reduce of the same shape in a captured graph of 50, slowest rank.
* `left_bytes`: device memory that 100 more captures left behind, the most of all ranks; in the last
  batch's record.
* `slept`, with `--sleep`: whether vLLM gives the same tokens after it has slept (level 1: weights
  on the host, the cache given up) and woken up. The whole start runs with vLLM's own allocator.
* `steps_ms`, with `--paired`: decode steps by who carries the all-reduces, in turn within one start
  (`vllm_paired.py`): between starts the host's time of a step differs by more than all-reduces do.

Ends with 1 if any start ended badly or late.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "integrations"))
from processes import started, tiny_model  # noqa: E402

BACKENDS = ("ours", "stock", "nccl")
HIDDEN = 1024
SHORT, LONG = 16, 144  # tokens
CAPTURES = 100
SHARED = ("backend", "ranks", "layers", "mode")  # of a job and its records
TIMES = ("step_ms", "gpu_ms", "kernel_us", "micro_us")
# "compiled" is vLLM's default: torch.compile, and both full and piecewise graphs.
MODES: dict[str, dict[str, Any]] = {
    "graphs": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
    "compiled": {},
}
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


def tell(batch: int, **found: Any) -> None:
    """More about one batch, to the process that started this one."""
    print("\nRESULT " + json.dumps({"batch": batch, **found}), flush=True)


def digest(tokens: list[list[int]]) -> str:
    return hashlib.sha256(repr(tokens).encode()).hexdigest()[:16]


def engine(job: dict[str, Any]) -> Any:
    """vLLM's LLM of a job, with weights of our own."""
    from vllm import LLM

    llm = LLM(
        model=job["model"],
        load_format="dummy",
        skip_tokenizer_init=True,
        tensor_parallel_size=job["ranks"],
        disable_custom_all_reduce=job["backend"] == "nccl",
        compilation_config={**MODES[job["mode"]], "cudagraph_capture_sizes": job["batches"]},
        dtype="bfloat16",
        gpu_memory_utilization=0.4,
        max_model_len=512,
        max_num_seqs=max(job["batches"]),
        seed=0,
        enable_sleep_mode=job["sleep"],
        worker_extension_cls="vllm_gpu_worker.Probe",
    )
    llm.collective_rpc("weights")
    return llm


def generate(llm: Any, batch: int, tokens: int) -> tuple[float, list[list[int]]]:
    """Seconds, and greedy tokens of each request; all of them start in one step."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [3 + i, 7, 11 + i, 5]} for i in range(batch)]
    sampling = SamplingParams(max_tokens=tokens, temperature=0, detokenize=False, ignore_eos=True)
    llm.sleep(level=0, mode="keep")  # else it starts on the first while the others arrive
    llm.enqueue(prompts, sampling, use_tqdm=False)
    begin = time.perf_counter()
    llm.wake_up(tags=["scheduling"])
    outputs = llm.wait_for_completion(use_tqdm=False)
    took = time.perf_counter() - begin
    return took, [list(output.outputs[0].token_ids) for output in outputs]


def measure(job: dict[str, Any]) -> None:
    """One backend, in a process of its own: each RESULT line has more about one batch.

    What may yet fail comes last, and the profiler, which may slow down what follows, behind times.
    """
    batches = job["batches"]
    llm = engine(job)
    before: dict[int, list[list[int]]] = {}
    for batch in batches:
        generate(llm, batch, SHORT)
        pairs = [(generate(llm, batch, LONG), generate(llm, batch, SHORT)) for _ in range(3)]
        step = statistics.median(long[0] - short[0] for long, short in pairs) / (LONG - SHORT)
        before[batch] = tokens = pairs[0][0][1]
        tell(
            batch,
            **{name: job[name] for name in SHARED},
            hidden=HIDDEN,
            tokens=digest(tokens),
            repeats=all(long[1] == tokens for long, _ in pairs),
            step_ms=round(step * 1e3, 4),
            **llm.collective_rpc("slot")[0],
        )
    for batch in batches:
        micro = max(llm.collective_rpc("micro", args=(batch, HIDDEN)))
        tell(batch, micro_us=round(micro, 3))
    a_step = 2 * job["layers"] + 1
    last = a_step * SHORT // 2  # all-reduces of decode alone: what comes last
    for batch in batches:
        llm.collective_rpc("watch")
        generate(llm, batch, SHORT)
        by_rank = [seen[-last:] for seen in llm.collective_rpc("seen")]
        if all(len(seen) == last for seen in by_rank):
            tell(batch, kernel_us=shortest([[us for _, us in seen] for seen in by_rank]))
            spans = shortest([steps(seen, a_step) for seen in by_rank])
            tell(batch, gpu_ms=round(spans / 1e3, 4))
        tell(batch, kernels=[len(seen) for seen in by_rank])
    left = max(llm.collective_rpc("captures", args=(CAPTURES, HIDDEN)))
    tell(batches[-1], captures=CAPTURES, left_bytes=left)
    if job["sleep"]:
        llm.sleep(level=1)
        llm.wake_up()
        for batch in batches:
            tell(batch, slept=generate(llm, batch, LONG)[1] == before[batch])


def steps(seen: list[tuple[float, float]], a_step: int) -> list[float]:
    """us from the first to the last all-reduce of each step."""
    ends = (seen[i : i + a_step] for i in range(0, len(seen), a_step))
    return [step[-1][0] + step[-1][1] - step[0][0] for step in ends]


def shortest(by_rank: list[list[float]]) -> float:
    """The median of what the rank saw that waited least."""
    best: list[float] = [min(same) for same in zip(*by_rank, strict=True)]
    return round(statistics.median(best), 3)


def start(
    backend: str, options: argparse.Namespace, work: Path
) -> tuple[list[dict[str, Any]], bool]:
    """The records of one backend, as many as it got to before its deadline, and whether that was
    all."""
    model = tiny_model(
        work / "model",
        hidden_size=HIDDEN,
        intermediate_size=2048,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=1024,
    )
    job = {
        "backend": backend,
        "batches": options.batches,
        "layers": options.layers,
        "mode": options.mode,
        "model": str(model),
        "ranks": options.ranks,
        "sleep": options.sleep,
        "paired": options.paired,
    }
    environment = {**SETTINGS, **os.environ}
    path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    if backend != "ours":
        environment["VLLM_PLUGINS"] = "none"
    name = f"vllm-{options.ranks}-{options.layers}-{options.mode}-{backend}.log"
    log = options.logs / name
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(job)]
    begin = time.monotonic()
    with started(command, environment, log) as process:
        try:
            code: int | None = process.wait(options.deadline)
        except subprocess.TimeoutExpired:
            code = None
    text = log.read_text(errors="replace")
    by_batch: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        if line.startswith("RESULT "):
            found = json.loads(line[7:])
            by_batch.setdefault(found["batch"], {}).update(found)
    records = list(by_batch.values())
    print(f"{backend}: exit {code} after {time.monotonic() - begin:.0f} s, {len(records)} records")
    for line in text.splitlines():
        if "pyallreduce" in line and ("INFO" in line or "WARNING" in line):
            print(f"  {line[:200]}")
    if code != 0:
        print(text[-1500:])
    return records, code == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--mode", choices=list(MODES), default="graphs")
    parser.add_argument("--paired", type=int, default=0, help="all arms so often, in one start")
    parser.add_argument("--sleep", action="store_true", help="let vLLM sleep and wake up, too")
    parser.add_argument("--deadline", type=float, default=170, help="seconds a backend")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.paired and (options.paired < 2 or options.sleep):
        parser.error("--paired takes 2 rounds or more, and no --sleep")
    if options.child:
        job = json.loads(options.child)
        if job["paired"]:
            from vllm_paired import measure_paired

            measure_paired(job)
        else:
            measure(job)
        return 0
    from pyallreduce.info import header

    records: list[dict[str, Any]] = []
    whole = True
    with tempfile.TemporaryDirectory() as work:
        for backend in ("ours",) if options.paired else options.backends:
            found, ended_well = start(backend, options, Path(work))
            records += found
            whole = whole and ended_well
            if options.json:  # after each: a later one that hangs takes nothing with it
                content = {"header": header(" ".join(sys.argv)), "records": records}
                options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if options.paired:
        from vllm_paired import table

        print(*table(records), sep="\n")
        return 0 if whole else 1
    heads = f"{'step ms':>8} {'gpu ms':>8} {'kernel us':>9} {'micro us':>8}"
    print(f"batch {'backend':8} {heads}  tokens")
    for r in sorted(records, key=lambda r: (r["batch"], BACKENDS.index(r["backend"]))):
        step, gpu, kernel, micro = (r.get(name, "-") for name in TIMES)
        times = f"{step:>8} {gpu:>8} {kernel:>9} {micro:>8}"
        print(f"{r['batch']:>5} {r['backend']:8} {times}  {r['tokens']}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
