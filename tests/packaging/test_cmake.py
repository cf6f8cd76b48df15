# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""CMake on its own: with and without nvcc, for which architectures, and what ptxas reports."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., "CompletedProcess[str]"]
NO_NVCC = "no working nvcc was found: put nvcc on PATH or set CUDACXX."
RESOURCES = re.compile(
    r"Function properties for (\S+)\s+"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)


def test_off_builds_the_host_target_alone(
    configure: Run, run: Run, build_env: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "build"
    configure(folder, "PYALLREDUCE_CUDA=OFF", env=build_env)
    run("cmake", "--build", folder, env=build_env)
    says = "import _C; print(_C.cuda_built, _C.cuda_version, repr(_C.architectures))"
    built = run(sys.executable, "-c", says, cwd=folder, env=build_env)
    assert built.stdout.split() == ["False", "0", "''"]


def test_auto_without_nvcc_says_so(
    configure: Run, without_nvcc: dict[str, str], tmp_path: Path
) -> None:
    output = configure(tmp_path / "build", env=without_nvcc).stdout
    assert "pyallreduce: no nvcc found, building the host target alone." in output
    assert "kernels.cu" not in (tmp_path / "build" / "build.ninja").read_text()


def test_on_without_nvcc_fails_with_one_line(
    configure: Run, without_nvcc: dict[str, str], tmp_path: Path
) -> None:
    env = {**without_nvcc, "PYALLREDUCE_CUDA": "ON"}
    done = configure(tmp_path / "build", env=env, check=False)
    assert done.returncode != 0
    lines = [line.strip() for line in done.stdout.splitlines() if "PYALLREDUCE_CUDA" in line]
    assert lines == [f"PYALLREDUCE_CUDA=ON but {NO_NVCC}"]


def test_an_unknown_choice_is_refused(
    configure: Run, build_env: dict[str, str], tmp_path: Path
) -> None:
    done = configure(tmp_path / "build", "PYALLREDUCE_CUDA=maybe", env=build_env, check=False)
    assert done.returncode != 0
    assert "PYALLREDUCE_CUDA=MAYBE is not one of AUTO, ON, OFF." in done.stdout


@pytest.fixture
def call_cmake(run: Run, root: Path, build_env: dict[str, str], tmp_path: Path) -> Run:
    """`call_cmake(lines, ...)` runs CMake's language with the project's functions at hand."""

    def called(
        lines: str, env: dict[str, str] | None = None, check: bool = True
    ) -> CompletedProcess[str]:
        script = tmp_path / "script.cmake"
        script.write_text(f"include({root}/cmake/Cuda.cmake)\n{lines}\n")
        return run("cmake", "-P", script, env={**build_env, **(env or {})}, check=check)

    return called


@pytest.mark.parametrize(
    ("torch_list", "expected"),
    [
        ("8.0;9.0a 10.0+PTX", "80-real;90a-real;100"),
        ("7.0 7.5 8.0 8.9 9.0 12.0", "80-real;89-real;90-real;120-real"),
        ("", ""),
    ],
)
def test_torch_arch_list_is_converted(call_cmake: Run, torch_list: str, expected: str) -> None:
    lines = f'pyallreduce_convert_torch_list("{torch_list}" out)\nmessage("[${{out}}]")'
    assert f"[{expected}]" in call_cmake(lines).stdout.splitlines()


def test_an_unknown_architecture_is_refused(call_cmake: Run) -> None:
    done = call_cmake('pyallreduce_convert_torch_list("9.0 Hopper" out)', check=False)
    assert done.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST holds 'Hopper'" in done.stdout


@pytest.mark.parametrize(
    ("version", "expected"),
    [("12.4", "80-real;90"), ("12.8", "80-real;90-real;100;120-real"), ("", "80-real;90")],
)
def test_default_is_what_the_nvcc_knows(call_cmake: Run, version: str, expected: str) -> None:
    lines = f'pyallreduce_default_architectures("{version}" out)\nmessage("[${{out}}]")'
    assert f"[{expected}]" in call_cmake(lines).stdout.splitlines()


def test_who_chooses_the_architectures(call_cmake: Run) -> None:
    select = 'pyallreduce_select_architectures(out)\nmessage("[${out}]")'
    torch = {"TORCH_CUDA_ARCH_LIST": "9.0"}
    everyone = {**torch, "CUDAARCHS": "80-real;100"}
    given = f'set(CMAKE_CUDA_ARCHITECTURES "90a")\n{select}'
    assert "[90a]" in call_cmake(given, env=everyone).stdout
    assert "[80-real;100]" in call_cmake(select, env=everyone).stdout
    assert "[90-real]" in call_cmake(select, env=torch).stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kernels_use_no_stack_and_spill_nothing(
    configure: Run, run: Run, build_env: dict[str, str], tmp_path: Path
) -> None:
    if shutil.which("nvcc", path=build_env["PATH"]) is None:
        pytest.skip("needs nvcc")
    folder = tmp_path / "build"
    configure(
        folder,
        "PYALLREDUCE_CUDA=ON",
        "CMAKE_CUDA_ARCHITECTURES=90-real",
        "CMAKE_CUDA_FLAGS=--resource-usage",
        env=build_env,
    )
    target = "CMakeFiles/_C.dir/csrc/cuda/kernels.cu.o"
    report = run("cmake", "--build", folder, "--target", target, env=build_env).stdout
    found = RESOURCES.findall(report)
    kernels = re.findall(r"Compiling entry function '(\S+)' for 'sm_90'", report)
    assert kernels
    assert set(kernels) <= {name for name, *_ in found}
    assert [use for use in found if use[1:] != ("0", "0", "0")] == []
