# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What every test rests on: the compiled module, and as many GPUs as a test asks for."""

from __future__ import annotations

import importlib
import importlib.util

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = importlib.import_module("pyallreduce._C").device_count()
    for item in items:
        if marker := item.get_closest_marker("gpu"):
            needed = marker.args[0] if marker.args else 1
            if here < needed:
                reason = f"needs {needed} CUDA GPU(s), this machine has {here}"
                item.add_marker(pytest.mark.skip(reason=reason))
