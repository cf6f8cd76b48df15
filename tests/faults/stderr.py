# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What this process writes to standard error, by whatever means: the watchdog does without
Python."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["captured"]


@contextlib.contextmanager
def captured(file: Path) -> Iterator[Callable[[], str]]:
    """Keep it in `file` meanwhile; the function that it yields reads all so far. The file is gone
    at the end, and left behind by a process that ends before: it holds that one's last words."""
    sys.stderr.flush()
    kept = os.dup(2)
    with file.open("wb") as to:
        os.dup2(to.fileno(), 2)
    try:
        yield lambda: file.read_text(errors="replace")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        file.unlink()
