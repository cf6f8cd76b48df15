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

# For `second_plugin`: rank 1 finds that its writes are lost. Where a target can drop writes itself,
# this is the place to ask for it.
LOST = """
def register():
    from pyallreduce import validate
    from pyallreduce.reasons import Code, Reason
    sound = validate.edges
    def edges(native, rank, nonce):
        found = sound(native, rank, nonce)
        lost = Reason(Code.P2P_WRITE_LOST, "rank 1 to rank 0, 0 of 8 rounds in 10.0 s")
        return lost if rank == 1 else found
    validate.edges = edges
"""


def tiny_model(folder: Path, **changes: Any) -> Path:
    """A Llama of two layers with random weights, described by its config alone."""
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


def second_plugin(folder: Path, source: str) -> Path:
    """A plugin of vLLM's beside ours, which injects a fault: the folder to put into PYTHONPATH.

    `source` defines `register()`, which vLLM calls in each of its processes.
    """
    about = folder / "fault_for_tests-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fault-for-tests\nVersion: 0\n")
    entry = "[vllm.general_plugins]\nfault = fault_for_tests:register\n"
    (about / "entry_points.txt").write_text(entry)
    (folder / "fault_for_tests.py").write_text(source)
    return folder


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


def session(leader: int) -> list[int]:
    """The living processes of a session, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found
