# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`pyallreduce bench`: our algorithms and NCCL (gloo) side by side, as nccl-tests prints them.

`options` is what the flags say, `backends` who is measured, `timing` how, `report` how it is shown
and kept, `run` the sweep that each rank makes. The docstring of `timing` says what the figures
mean.
"""
