# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""docs/troubleshooting.md, made from reasons.py:

python -m pyallreduce.reasons_page > docs/troubleshooting.md
"""

from __future__ import annotations

import sys

from pyallreduce.reasons import Code, Reason

__all__ = ["page"]

_HEAD = """\
# Troubleshooting

This page is made from `pyallreduce/reasons.py` by `python -m pyallreduce.reasons_page`.

1. `pyallreduce info` prints versions, GPUs, links, the decision, its reason and the remedy. Put
   its output into a bug report.
2. `pyallreduce check --verbose` starts ranks of its own, proves every edge and every kernel, and
   prints the edges with their times.
3. In your program, `Communicator.decision` holds the same reason, and the logger `pyallreduce`
   says it at start-up.

Errors are classes of the package, such as `pyallreduce.AllReduceAborted`. There is no release yet:
where `pip install` names pyallreduce, `pip install .` in a checkout.

## An error at run time

| error | what happened | what to do |
|---|---|---|
| `AllReduceAborted` | A rank waited for a peer until its deadline, or the peer's process ended \
or closed its communicator. The message names both ranks, the call, the bytes and the phase. | \
Look at the named peer's log. If it lives, all ranks can call `recover()`; a slow peer needs a \
longer `PYALLREDUCE_TIMEOUT_MS`, or `Communicator.patience()` around the slow part. |
| `CallMismatch` | Two ranks made different calls. The message prints both. | Find where the \
ranks' programs part: a size, dtype or branch that depends on a rank's own state. |
| `CallRefused` | A peer refused its arguments. | Mend the peer's call; the next call works \
again. |
| `ExchangeTimeout` | A rank did not come to a step of the start-up or of `recover()`, or was \
lost in it; the message names it where that is known. | Look at the other ranks' logs; start again \
with a new process group, unless the message says that all may try again. |
| `BackendUnavailable` | `PYALLREDUCE_BACKEND=native` demands what this machine cannot give. | \
See the reason below, or set `PYALLREDUCE_BACKEND=auto`. |

A wait that lasts longer than `PYALLREDUCE_NOTICE_MS` (5 s) gets one line on standard error with
rank, peer, call and phase, long before its deadline. A skipped call between two identical ones
cannot be seen in the data: give calls a `tag` to tell them apart.

## Reasons

| code | cause | what to do |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = (f"| `{code.value}` | {Reason(code).cause} | {Reason(code).remedy} |" for code in Code)
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
