# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled module that is installed: what it needs, what it shows, what its stub says."""

from __future__ import annotations

import ast
import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pyallreduce import _C as module  # noqa: N811

SYSTEM_LIBRARY = re.compile(
    r"(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux[\w-]*)\.so\.\d+"
)
# Loaded by its path: the package around it would bring in torch, which may bring in the driver.
LOAD_ALONE = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print("libcuda.so" in pathlib.Path("/proc/self/maps").read_text(), "torch" in sys.modules)
"""


def binutils(tool: str, *options: str) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    command = [tool, *options, "--wide" if tool == "readelf" else "--format=posix"]
    assert module.__file__ is not None
    return subprocess.check_output([*command, module.__file__], text=True)


def test_it_needs_only_the_system_libraries() -> None:
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", binutils("readelf", "--dynamic"))
    assert needed
    assert [name for name in needed if not SYSTEM_LIBRARY.fullmatch(name)] == []


def test_it_exports_its_entry_point_alone() -> None:
    lines = binutils("nm", "--dynamic", "--defined-only").splitlines()
    assert [line.split()[0] for line in lines] == ["PyInit__C"]


def test_loading_it_touches_neither_driver_nor_torch() -> None:
    command = [sys.executable, "-c", LOAD_ALONE, str(module.__file__)]
    assert subprocess.check_output(command, text=True).split() == ["False", "False"]


def test_without_a_driver_there_are_no_devices() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert (module.device_count(), module.driver_cuda_version()) == (0, 0)
    else:
        pytest.skip("this machine has a CUDA driver")


def test_what_it_says_of_its_build_agrees() -> None:
    assert bool(module.architectures) == module.cuda_built
    assert bool(module.cuda_version) == module.cuda_built


def names(body: list[ast.stmt]) -> set[str]:
    """What a stub's block declares."""
    found = set()
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            found.add(statement.name)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found.add(statement.target.id)
    return found


def public(of: ModuleType | type) -> set[str]:
    return {name for name in dir(of) if not name.startswith("__")}


def test_the_stub_declares_what_is_there() -> None:
    assert module.__file__ is not None
    stub = ast.parse(Path(module.__file__).with_name("_C.pyi").read_text())
    assert public(module) <= names(stub.body)
    if module.cuda_built:  # the host target alone leaves the CUDA names out
        assert names(stub.body) == public(module)
    for statement in stub.body:
        if isinstance(statement, ast.ClassDef) and hasattr(module, statement.name):
            declared = {name for name in names(statement.body) if not name.startswith("__")}
            assert declared <= public(getattr(module, statement.name)), statement.name
