# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Examples of hypothesis have no deadline of their own: a busy machine is no defect, and every test
has one by pytest-timeout."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("pyallreduce", deadline=None)
settings.load_profile("pyallreduce")
