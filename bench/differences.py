# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""How far two series of times are apart that were measured in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def difference(times: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The mean by which `times` are longer, turn by turn, and half its interval of 95 %."""
    each = [a - b for a, b in zip(times, others, strict=True)]
    half = _student(len(each) - 1) * statistics.stdev(each) / len(each) ** 0.5
    return statistics.mean(each), half


def _student(freedom: int) -> float:
    """The 0.975 quantile of Student's t, right to 0.01 from 7 degrees of freedom on: the first
    terms of its expansion about the normal one (Abramowitz and Stegun, 26.7.5)."""
    return 1.96 + 2.372 / freedom + 2.823 / freedom**2
