# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""pyallreduce inside inference engines, by their own plugin hooks. Nothing else of the package
imports this; importing it imports no engine and touches no GPU."""
