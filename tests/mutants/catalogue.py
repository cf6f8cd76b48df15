# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""All mutants. A text that is gone, or stands twice, is an error: anchor the mutant anew."""

from __future__ import annotations

from tests.mutants.mutant import Mutant
from tests.mutants.of_gpu_memory import GPU_MEMORY
from tests.mutants.of_protocol import PROTOCOL
from tests.mutants.of_python import PYTHON

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = (*PROTOCOL, *GPU_MEMORY, *PYTHON)
