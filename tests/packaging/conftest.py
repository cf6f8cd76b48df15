# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Builds of the project beside the installed one, always in a temporary folder."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_VARIABLES = (
    "CMAKE_ARGS",
    "CUDAARCHS",
    "CUDACXX",
    "CUDAFLAGS",
    "CUDA_PATH",
    "CXXFLAGS",
    "PYALLREDUCE_CUDA",
    "TORCH_CUDA_ARCH_LIST",
)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def run() -> Run:
    """`run(*command, env=...)` to the end; a failure shows the command's own words."""

    def to_the_end(
        *command: str | Path, env: Mapping[str, str], cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            check=False,
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if check and done.returncode:
            pytest.fail(f"{command[0]} ended with {done.returncode}:\n{done.stdout}", pytrace=False)
        return done

    return to_the_end


@pytest.fixture(scope="session")
def build_env() -> dict[str, str]:
    """The environment less what bends a build, with this interpreter's tools first on PATH."""
    env = {name: value for name, value in os.environ.items() if name not in BUILD_VARIABLES}
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
    return env


@pytest.fixture
def without_nvcc(build_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same where nvcc is not to be found: a folder that holds one gives way to links."""
    folders = []
    for index, folder in enumerate(map(Path, build_env["PATH"].split(os.pathsep))):
        if not (folder / "nvcc").exists():
            folders.append(folder)
            continue
        stand_in = tmp_path / f"path{index}"
        stand_in.mkdir()
        for tool in folder.iterdir():
            if tool.name != "nvcc":
                (stand_in / tool.name).symlink_to(tool)
        folders.append(stand_in)
    return {**build_env, "PATH": os.pathsep.join(map(str, folders))}


@pytest.fixture
def configure(run: Run) -> Run:
    """`configure(folder, *defines, env=...)` runs CMake as a user without pip would."""
    pybind11 = importlib.import_module("pybind11")

    def configured(
        folder: Path, *defines: str, env: Mapping[str, str], check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return run(
            *("cmake", "-G", "Ninja", "-S", ROOT, "-B", folder),
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *(f"-D{define}" for define in defines),
            env=env,
            check=check,
        )

    return configured
