# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""What this process writes to standard error, by whatever means: the watchdog does without
Python."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

__all__ = ["captured"]


@contextlib.contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """Keep it from the terminal meanwhile; the function that it yields reads all so far."""
    sys.stderr.flush()
    kept = os.dup(2)
    pipe = os.memfd_create("stderr")
    os.dup2(pipe, 2)

    def read() -> str:
        size = os.lseek(pipe, 0, os.SEEK_END)
        return os.pread(pipe, size, 0).decode(errors="replace")

    try:
        yield read
    finally:
        os.dup2(kept, 2)
        os.close(kept)
