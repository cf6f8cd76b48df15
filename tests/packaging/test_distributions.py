# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The sdist holds what a build needs; the wheel built from it holds what a user needs."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., "CompletedProcess[str]"]
HOOK = "from scikit_build_core.setuptools import build_meta; build_meta.build_{kind}('{out}')"
IGNORED = shutil.ignore_patterns("build", "dist", "*.egg-info", "*.so", ".*", "__pycache__")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def files(folder: Path, *below: str) -> set[str]:
    """The files of a tree, named as the archives name them."""
    found = (path for name in below for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found}


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: setuptools leaves folders in the tree that it builds."""
    copy = tmp_path_factory.mktemp("tree") / "pyallreduce"
    return Path(shutil.copytree(root, copy, ignore=IGNORED))


@pytest.fixture(scope="module")
def unpacked(tree: Path, run: Run, build_env: dict[str, str]) -> Path:
    """The sdist, unpacked."""
    out = tree.parent
    run(sys.executable, "-c", HOOK.format(kind="sdist", out=out), cwd=tree, env=build_env)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        sdist.extractall(out)
    return out / archive.name[: -len(".tar.gz")]


@pytest.fixture(scope="module")
def wheel(unpacked: Path, run: Run, build_env: dict[str, str]) -> zipfile.ZipFile:
    """The wheel that the sdist alone gives, of the host target: it builds faster."""
    out = unpacked.parent
    env = {**build_env, "PYALLREDUCE_CUDA": "OFF"}
    run(sys.executable, "-c", HOOK.format(kind="wheel", out=out), cwd=unpacked, env=env)
    (archive,) = out.glob("*.whl")
    return zipfile.ZipFile(archive)


def test_sdist_holds_the_sources(tree: Path, unpacked: Path) -> None:
    wanted = files(tree, "cmake", "csrc", "pyallreduce", "tests")
    wanted |= {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert wanted - files(unpacked, ".") == set()


def test_wheel_holds_the_package_alone(tree: Path, wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    version = importlib.metadata.version("pyallreduce")
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pyallreduce", f"pyallreduce-{version}.dist-info"}
    assert files(tree, "pyallreduce") - set(names) == set()
    assert len([name for name in names if name.startswith("pyallreduce/_C.cpython")]) == 1
    extra = [name for name in names if name.endswith((".cpp", ".cu", ".h", ".cmake", ".txt"))]
    assert [name for name in extra if name.startswith("pyallreduce/")] == []


def test_wheel_declares_the_command(wheel: zipfile.ZipFile) -> None:
    (declared,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "pyallreduce = pyallreduce.cli:main" in wheel.read(declared).decode()
