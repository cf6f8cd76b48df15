# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI-compatible server with two ranks, as a user starts and stops it.

The model is a tiny Llama with random weights and a byte-level tokenizer of our own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import alive, session, started, tiny_model

START_S = 280.0
STOP_S = 90.0


def chat_model(folder: Path, **changes: Any) -> Path:
    """The tiny model, with a tokenizer that knows every byte, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tiny_model(folder, **changes)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = len(vocabulary)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    seconds: float  # from start to healthy

    def chat(self, tokens: int = 8, deadline_s: float = 60) -> str:
        """The answer to one chat completion of so many tokens, greedy."""
        request = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = post(f"http://127.0.0.1:{self.port}/v1/chat/completions", request, deadline_s)
        assert answer["usage"]["completion_tokens"] == tokens, answer
        return str(answer["choices"][0]["message"]["content"])

    def workers(self) -> list[int]:
        """The workers' process ids, by rank, as the log has them."""
        found = re.findall(r"\(Worker_TP([0-9]) pid=([0-9]+)\)", self.text())
        return [int(pid) for _, pid in sorted(set(found))]

    def stop(self) -> float:
        """Ask the server to end, as Ctrl-C does; seconds until nothing of it is left."""
        self.process.send_signal(signal.SIGINT)
        return self.gone()

    def gone(self) -> float:
        """Seconds until nothing of the server is left."""
        begin = time.monotonic()
        while left := self._left():
            assert time.monotonic() - begin < STOP_S, f"still there: {left}\n{self.text()[-4000:]}"
            time.sleep(0.2)
        return time.monotonic() - begin

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def _left(self) -> list[int]:
        self.process.poll()
        workers = [pid for pid in self.workers() if alive(pid)]
        return sorted({*session(self.process.pid), *workers})


@contextlib.contextmanager
def serving(
    model: Path, environment: Mapping[str, str], log: Path, arguments: tuple[str, ...]
) -> Iterator[Server]:
    """A server that has become healthy; on leaving nothing of it is left."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", "tiny", "--load-format", "dummy"),
        *("--host", "127.0.0.1", "--port", str(port), "--tensor-parallel-size", "2"),
        *("--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "4"),
        *arguments,
    ]
    with started(command, environment, log) as process:
        yield Server(process, port, log, until_healthy(process, port, log, START_S))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def until_healthy(
    process: subprocess.Popen[bytes], port: int, log: Path, deadline_s: float
) -> float:
    """Seconds until a server that has just been started is healthy.

    Raises:
        AssertionError: it has ended, or was not healthy in time.
    """
    begin = time.monotonic()
    while not _healthy(port):
        ended = process.poll()
        late = time.monotonic() - begin > deadline_s
        if ended is not None or late:
            what = "was not healthy in time" if late else f"ended with {ended}"
            raise AssertionError(f"the server {what}\n{log.read_text(errors='replace')[-8000:]}")
        time.sleep(0.5)
    return time.monotonic() - begin


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def post(url: str, content: Mapping[str, Any], deadline_s: float) -> Any:
    data = json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=deadline_s) as answer:
        return json.load(answer)


def kill(pid: int) -> None:
    """SIGKILL, as the OOM killer does it."""
    os.kill(pid, signal.SIGKILL)


FAILED = (urllib.error.URLError, ConnectionError, TimeoutError)
