# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The least that a mutant of the Python parts must still do: a frame's round trip, a decision, and
the litmus checker's own reading of the header."""

from __future__ import annotations

from dataclasses import replace

from pyallreduce import wire
from pyallreduce.facts import Facts
from pyallreduce.reasons import Code, Reason
from pyallreduce.selector import decide
from pyallreduce.verdicts import first_veto

NONCE = bytes(range(16))
FACTS = Facts(
    rank=0,
    world=2,
    target="host",
    module="host",
    protocol=1,
    boot_id="boot",
    pid=1,
    pid_namespace=1,
    gpu_uuid="",
    gpu_name="",
    bus_id="",
    capability=0,
    sm_count=0,
    driver_cuda=0,
    build_cuda=0,
    has_kernel=False,
    mig=False,
    confidential=False,
    wsl=False,
    nccl_p2p_disabled=False,
    backend="auto",
    config_digest=bytes(8),
    share_gpu=False,
    links=(),
    error="",
)


def main() -> None:
    frame = wire.encode_facts(FACTS, nonce=NONCE)
    assert wire.decode(frame, Facts, nonce=NONCE, rank=0, world=2) == FACTS
    assert decide([FACTS, replace(FACTS, rank=1)]).backend == "native"
    assert first_veto([Reason(Code.OK), Reason(Code.OK)]).code is Code.OK


if __name__ == "__main__":
    main()
