# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Everyone who is measured by `bench --compare`, one module a backend behind one small class.

`registry` lists them without importing any; `base` is the class. A peer's own package is imported
by its rank processes alone.
"""
