# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The story behind this project, replayed: a server starts, answers, goes down in several ways, and
answers again after each; one whose peer-to-peer path drops writes answers too, and says why.

`TEST_STORY_CYCLES` is the number of starts (default 2), `TEST_STORY_VLLM` the release.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from engines import Release, release
from processes import LOST, RAISES, second_plugin
from server import FAILED, Server, chat_model, kill, serving

pytestmark = [pytest.mark.slow, pytest.mark.ranks, pytest.mark.timeout(600)]

# What the survivor's watchdog says of the wait that the death then ends.
WAITS = r"pyallreduce: rank 0 has waited [0-9.]+ s for rank 1 in call [0-9]+ "
# What the survivor's watchdog says, and what ends the request: rank, peer, its process, the call.
SAID = (
    r"pyallreduce: rank 0: rank 1 \(process {pid}\) died \(.+?\) after it had launched [0-9]+ calls"
)
ENDED = (
    r"AllReduceAborted: PEER_DIED: .*rank 1 \(process {pid}\) died .*"
    r"Rank 0 waited in call [0-9]+: [0-9]+ bytes of bfloat16"
)
# What a worker says that vLLM does not hear, and what the other one's answer is.
UNHEARD = r"MemoryError: planted. pyallreduce ends this worker \(rank 1\): "
LEFT = r"AllReduceAborted: rank 0 waited for rank 1 \(\w+\), which has closed its communicator"
CYCLES = int(os.environ.get("TEST_STORY_CYCLES", "2"))
ARGUMENTS = ("--enforce-eager",)


@pytest.fixture(scope="module")
def vllm() -> Release:
    return release(os.environ.get("TEST_STORY_VLLM", "0.32.0"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("story") / "model")


@pytest.fixture(scope="module")
def answers() -> list[str]:
    """Of all servers: each must answer as the first one did."""
    return []


@pytest.mark.parametrize("cycle", range(CYCLES))
def test_up_answer_down_and_again(
    cycle: int, vllm: Release, model: Path, answers: list[str], tmp_path: Path
) -> None:
    """Down cleanly, and by the SIGKILL of each worker, in turn."""
    environment = vllm.environment(tmp_path / "cache")
    with serving(model, environment, tmp_path / "log", ARGUMENTS) as server:
        answers.append(server.chat())
        assert "pyallreduce carries the all-reduces" in server.text()
        if cycle % 2 == 0:
            how, seconds = "stopped", server.stop()
        else:
            kill(server.workers()[cycle // 2 % 2])
            how, seconds = "a worker killed", server.gone()
    print(f"cycle {cycle}: up in {server.seconds:.0f} s, {how}, gone in {seconds:.1f} s")
    assert answers[-1] == answers[0]


def test_a_worker_killed_in_a_request_ends_it_with_a_named_error(
    vllm: Release, model: Path, tmp_path: Path
) -> None:
    """In a call: where a worker dies between two steps, vLLM alone ends the request."""
    environment = {**vllm.environment(tmp_path / "cache"), "PYALLREDUCE_NOTICE_MS": "1000"}
    with serving(model, environment, tmp_path / "log", ARGUMENTS) as server:
        server.chat()
        pid, said = server.workers()[1], len(server.text())
        ended: list[tuple[float, Exception | None]] = []
        request = threading.Thread(target=_request, args=(server, ended))
        os.kill(pid, signal.SIGSTOP)  # so that the other waits for it in the request's first call
        request.start()
        _wait_for(WAITS, server, said)
        assert not ended, "the request ended without the stopped worker"
        begin = time.monotonic()
        kill(pid)
        request.join(60)
        assert ended, "the request hangs"
        when, error = ended[0]
        assert when - begin < 30
        assert error is not None, "the request was answered"
        server.gone()
        text = server.text()
    for line in (SAID, ENDED):
        assert re.search(line.format(pid=pid), text), text[-4000:]


def test_an_error_of_a_worker_that_vllm_does_not_hear_ends_the_request(
    vllm: Release, model: Path, tmp_path: Path
) -> None:
    """vLLM takes a step's answer from rank 0, which waits for rank 1."""
    environment = _raising(vllm, tmp_path)
    with serving(model, environment, tmp_path / "log", ARGUMENTS) as server:
        server.chat()
        (tmp_path / "raise").touch()
        ended: list[tuple[float, Exception | None]] = []
        begin = time.monotonic()
        _request(server, ended)
        ((when, error),) = ended
        assert error is not None, "the request was answered"
        assert when - begin < 20  # rank 0 would wait for 60 s
        server.gone()
        text = server.text()
    for line in (UNHEARD, LEFT):
        assert re.search(line, text), text[-4000:]


def test_an_error_of_one_worker_in_the_profiling_ends_the_start(
    vllm: Release, model: Path, tmp_path: Path
) -> None:
    """The model's first run, where a wait may last for ten minutes, and vLLM sets no deadline.
    (Compiled: in eager mode vLLM's CPU build has no such run.)"""
    environment = _raising(vllm, tmp_path)
    (tmp_path / "raise").touch()
    begin = time.monotonic()
    with (
        pytest.raises(AssertionError, match="the server ended with"),
        serving(model, environment, tmp_path / "log", ()),
    ):
        pass
    assert time.monotonic() - begin < 240, "it waited"
    text = (tmp_path / "log").read_text(errors="replace")
    for line in (UNHEARD, LEFT):
        assert re.search(line, text), text[-4000:]


def test_an_edge_that_drops_writes_is_told_and_the_server_answers(
    vllm: Release, model: Path, answers: list[str], tmp_path: Path
) -> None:
    """Rank 1's writes to rank 0 are lost: found at start-up, and carried by the fallback."""
    environment = vllm.environment(tmp_path / "cache")
    environment["PYTHONPATH"] += os.pathsep + second_plugin(tmp_path / "fault", LOST)
    with serving(model, environment, tmp_path / "log", ARGUMENTS) as server:
        answer = server.chat()
        server.stop()
        told = [line for line in server.text().splitlines() if "P2P_WRITE_LOST" in line]
    assert len(told) == 1, told
    assert "WARNING" in told[0]
    assert "vLLM's own carries the all-reduces" in told[0]
    assert "Boot with iommu=pt" in told[0], "the remedy is missing"
    assert "rank 1 to rank 0" in told[0]
    assert answer == (answers or [answer])[0]


def _raising(vllm: Release, folder: Path) -> dict[str, str]:
    """For a server whose rank 1 raises once there is a file `raise` in `folder`."""
    environment = vllm.environment(folder / "cache", FAULT_FILE=str(folder / "raise"))
    environment["PYTHONPATH"] += os.pathsep + second_plugin(folder / "fault", RAISES)
    return environment


def _wait_for(line: str, server: Server, begin: int, seconds: float = 30) -> None:
    """Until the server's log has the line behind its first `begin` characters."""
    late = time.monotonic() + seconds
    while not re.search(line, server.text()[begin:]):
        assert time.monotonic() < late, (
            f"not said within {seconds} s: {line}\n{server.text()[begin:]}"
        )
        time.sleep(0.05)


def _request(server: Server, ended: list[tuple[float, Exception | None]]) -> None:
    failure: Exception | None = None
    try:
        server.chat(deadline_s=120)
    except FAILED as error:
        failure = error
    ended.append((time.monotonic(), failure))
