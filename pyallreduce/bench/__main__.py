# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m pyallreduce.bench`, also under torchrun."""

from __future__ import annotations

from pyallreduce.cli import bench

if __name__ == "__main__":
    bench(prog_name="python -m pyallreduce.bench")
