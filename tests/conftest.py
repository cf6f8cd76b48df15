# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What every test rests on: the compiled module, the tools and as many GPUs as a test asks for."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable

import pytest

BUILD = "pip install -e '.[test]'"


def _why_not_compiled() -> str | None:
    """One sentence if `pyallreduce._C` is not there to be tested, else None."""
    try:
        if importlib.util.find_spec("pyallreduce._C") is None:
            return f"pyallreduce._C is not built: run {BUILD}"
    except ModuleNotFoundError as error:  # the package itself, or something that it needs
        return f"pyallreduce cannot be imported ({error}): run {BUILD}"
    try:
        importlib.import_module("pyallreduce._C")
    except ImportError as error:
        return f"pyallreduce._C failed to load ({error}): run {BUILD} again"
    return None


def pytest_configure() -> None:
    if why := _why_not_compiled():
        raise pytest.UsageError(why)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run what takes minutes")


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    """`needs("spin", "gcc")` skips a test where a program is missing.

    With TEST_REQUIRE_TOOLS=1, as in CI, it fails: a check left out must not look green.
    """

    def check(*programs: str) -> None:
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            tell = pytest.fail if os.environ.get("TEST_REQUIRE_TOOLS") == "1" else pytest.skip
            tell(f"needs {', '.join(missing)}")

    return check


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    here = importlib.import_module("pyallreduce._C").device_count()
    for item in items:
        if marker := item.get_closest_marker("gpu"):
            needed = marker.args[0] if marker.args else 1
            if here < needed:
                reason = f"needs {needed} CUDA GPU(s), this machine has {here}"
                item.add_marker(pytest.mark.skip(reason=reason))
