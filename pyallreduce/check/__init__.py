# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`pyallreduce check`: every algorithm, dtype and size on ranks of its own, compared bit for bit.

`cases` lists what is called with which data, `verify` judges one result, `rank` is what each rank
runs, `report` joins the ranks' answers into a table and a verdict.
"""
