# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""All mutants. A text that is gone, or stands twice, is an error: anchor the mutant anew."""

from __future__ import annotations

from tests.mutants.mutant import Mutant
from tests.mutants.of_algorithms import ALGORITHMS
from tests.mutants.of_gpu_memory import GPU_MEMORY
from tests.mutants.of_python import PYTHON
from tests.mutants.of_signatures import SIGNATURES
from tests.mutants.of_waits import WAITS

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = (*ALGORITHMS, *SIGNATURES, *WAITS, *GPU_MEMORY, *PYTHON)
