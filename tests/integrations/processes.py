# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""A model of a few layers, and processes that leave nothing behind; for tests and bench alike."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# For `second_plugin`: what rank 1 writes to rank 0 is lost, on the CPU as on GPUs.
LOST = """
def register():
    import links
    from pyallreduce.slab import Slabs
    sound = Slabs.open
    def open_(slabs, *arguments):
        Slabs.open = sound
        if slabs._rank == 1:
            links.install([0], "dropped")
        Slabs.open(slabs, *arguments)
    Slabs.open = open_
"""
# And: rank 1 raises in its next all-reduce once the file named in FAULT_FILE is there.
RAISES = """
def register():
    import os
    from pathlib import Path
    from pyallreduce.integrations.adapter import SlotAdapter
    sound = SlotAdapter.all_reduce
    def all_reduce(slot, *arguments, **options):
        if slot.communicator.rank == 1 and Path(os.environ["FAULT_FILE"]).exists():
            raise MemoryError("planted")
        return sound(slot, *arguments, **options)
    SlotAdapter.all_reduce = all_reduce
"""

# What `abort_found` raises.
ABORT = "rank 0 waited 60.0 s for rank 1 in call 123"


def abort_found(step: int, ranks: int = 2) -> str:
    """For `second_plugin`: the first `ranks` ranks find an abort in their check number `step`."""
    return f"""
def register():
    import torch.distributed as dist
    from pyallreduce import AllReduceAborted, Communicator
    def check(self, seen=[]):
        seen.append(1)
        if len(seen) == {step} and dist.get_rank() < {ranks}:
            raise AllReduceAborted({ABORT!r})
    Communicator.check = check
"""


def tiny_model(folder: Path, **changes: Any) -> Path:
    """A Llama of two layers, described by its config alone."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def weighted_model(folder: Path) -> Path:
    """A model of two layers with weights of its own."""
    random_weights(tiny_model(folder))
    return folder


def random_weights(folder: Path) -> None:
    """Weights for the model in `folder`, which vLLM shares out: each rank has a part of its own.

    Its dummy ones are the same on all ranks: a sum of equal terms does not tell whose they were.
    """
    import torch
    from safetensors.torch import save_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, inner, words = (
        config[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    heads = config["num_attention_heads"] * config["head_dim"]
    groups = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (words, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (words, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        of_layer = {
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (groups, hidden),
            "self_attn.v_proj": (groups, hidden),
            "self_attn.o_proj": (hidden, heads),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": of for name, of in of_layer.items()}
    random = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=random) * 0.05
        for name, shape in shapes.items()
    }
    halves = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})


def second_plugin(folder: Path, source: str, group: str = "vllm.general_plugins") -> str:
    """A plugin of an engine's beside ours, which injects a fault: what to add to PYTHONPATH.

    `source` defines `register()`, which the engine calls in each of its processes; it may import
    what tests/faults has.
    """
    about = folder / "fault_for_tests-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fault-for-tests\nVersion: 0\n")
    entry = f"[{group}]\nfault = fault_for_tests:register\n"
    (about / "entry_points.txt").write_text(entry)
    (folder / "fault_for_tests.py").write_text(source)
    return os.pathsep.join([str(folder), str(Path(__file__).parent.parent / "faults")])


@contextlib.contextmanager
def started(
    command: list[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; on leaving, whatever is left of the session is ended."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for pid in session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return _stat(pid)[0] not in "ZX"


def session(leader: int) -> list[int]:
    """The living processes of a session, from /proc."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _stat(pid)[3] == str(leader) and alive(pid)]


def _stat(pid: int) -> list[str]:
    """State, parent, group and session of a process, and what follows; of one that is gone, X."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ["X", "", "", ""]
