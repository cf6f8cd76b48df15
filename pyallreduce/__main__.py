# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m pyallreduce` is the command `pyallreduce`."""

from pyallreduce.cli import main

if __name__ == "__main__":
    main(prog_name="pyallreduce")
