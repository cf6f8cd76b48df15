# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Builds of this tree with a few lines of csrc/protocol changed, for races and A/B measurements."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ROOT", "Patch", "build"]

ROOT = Path(__file__).resolve().parents[1]
# (file in csrc/protocol, what stands there, what shall stand there); "" there: a file of its own
Patch = tuple[str, str, str]


def build(folder: Path, patches: Sequence[Patch]) -> None:
    """This tree with `patches`, compiled in `folder` unless it is there already.

    Raises:
        LookupError: a patch finds nothing to change.
        CalledProcessError: it does not compile; `folder`/build.log says why.
    """
    if list(folder.glob("pyallreduce/_C*.so")):
        return
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("csrc", "cmake", "pyallreduce", "bench", "tests/gpu"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    for file, old, new in patches:
        path = folder / "csrc" / "protocol" / file
        text = path.read_text(encoding="utf-8") if old else ""
        if old not in text:
            message = f"{file} has changed: {old!r} is not there"
            raise LookupError(message)
        path.write_text(text.replace(old, new) if old else new, encoding="utf-8")
    _compile(folder)
    shutil.copy(next((folder / "build").glob("_C*.so")), folder / "pyallreduce")


def _compile(folder: Path) -> None:
    import pybind11

    configure = [
        *("cmake", "-S", ".", "-B", "build", "-G", "Ninja", "-DPYALLREDUCE_CUDA=AUTO"),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    with (folder / "build.log").open("w") as log:
        for command in (configure, ["ninja", "-C", "build"]):
            subprocess.run(command, cwd=folder, check=True, stdout=log, stderr=log, timeout=400)
