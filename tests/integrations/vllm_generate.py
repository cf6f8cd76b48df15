# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens of a vLLM with two ranks, and who carried its all-reduces; started by the tests."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

PROMPTS = [[1, 5, 9, 20], [7, 8], [3] * 40]


class Counters:
    """Mixed into vLLM's worker: counts the group's all-reduces that went round the slot."""

    def count_others(self) -> None:
        communicator = _communicator()
        others = communicator.dist_module
        carry, self.others = others.all_reduce, 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.others += 1
            return carry(*args, **kwargs)

        if type(others).__name__ == "module":  # torch.distributed itself: not to be changed
            communicator.dist_module = _Proxy(others, counted)
        else:
            others.all_reduce = counted

    def counts(self) -> dict[str, Any]:
        slot = getattr(_communicator(), "ca_comm", None)
        stats = None if slot is None else dataclasses.asdict(slot.communicator.stats())
        return {"others": self.others, "stats": stats}


class _Proxy:
    def __init__(self, module: Any, all_reduce: Any) -> None:
        self._module, self.all_reduce = module, all_reduce

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _communicator() -> Any:
    from vllm.distributed.parallel_state import get_tp_group

    return get_tp_group().device_communicator


def main(options: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=options["model"],
        skip_tokenizer_init=True,
        tensor_parallel_size=2,
        pipeline_parallel_size=options.get("stages", 1),
        enforce_eager=options["eager"],
        max_model_len=128,
        dtype="bfloat16",
        max_num_seqs=4,
        max_num_batched_tokens=128,
        worker_extension_cls="vllm_generate.Counters",
    )
    llm.collective_rpc("count_others")
    before = llm.collective_rpc("counts")
    sampling = SamplingParams(
        max_tokens=options["tokens"], temperature=0, detokenize=False, ignore_eos=True
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    try:
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
    except Exception as error:  # the engine's own, of whatever class
        print("\nRESULT " + json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    after = llm.collective_rpc("counts")
    print("\nRESULT " + json.dumps({"tokens": tokens, "before": before, "after": after}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
