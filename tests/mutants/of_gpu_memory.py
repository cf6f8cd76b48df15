# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Mutants of the memory order on GPUs, which the litmus tests read from the text."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

__all__ = ["GPU_MEMORY"]

_P = "csrc/protocol/"
_LITMUS = "tests/litmus/test_protocol.py::"

GPU_MEMORY = [
    Mutant(
        "stores of data at GPU scope",
        _P + "memory.h",
        "st.relaxed.sys.global.v4.u32",
        "st.relaxed.gpu.global.v4.u32",
        _LITMUS + "test_data_that_arrived_do_not_go_away",
    ),
    Mutant(
        "polls of a word at GPU scope",
        _P + "memory.h",
        "ld.relaxed.sys.global.u32",
        "ld.relaxed.gpu.global.u32",
        _LITMUS + "test_every_function_of_the_header_is_understood",
    ),
    Mutant(
        "the state word is not released",
        _P + "memory.h",
        "st.release.sys.global.u32",
        "st.relaxed.sys.global.u32",
        _LITMUS + "test_who_hears_of_a_failure_reads_its_whole_record",
        quick=True,
    ),
    Mutant(
        "the state word is released to the GPU alone",
        _P + "memory.h",
        "st.release.sys.global.u32",
        "st.release.gpu.global.u32",
        _LITMUS + "test_who_hears_of_a_failure_reads_its_whole_record",
    ),
    Mutant(
        "the host's words are not acquired",
        _P + "memory.h",
        "ld.acquire.sys.global.v4",
        "ld.relaxed.sys.global.v4",
        _LITMUS + "test_what_an_absent_rank_sent_is_here",
        quick=True,
    ),
    Mutant(
        "the host's words are acquired from the GPU alone",
        _P + "memory.h",
        "ld.acquire.sys.global.v4",
        "ld.acquire.gpu.global.v4",
        _LITMUS + "test_what_an_absent_rank_sent_is_here",
    ),
    Mutant(
        "a lap's signature leaves without a fence",
        _P + "two_shot.h",
        "signatures_.send_lap(block_, turn_, ",
        "signatures_.send(block_, turn_, ",
        _LITMUS + "test_rearming_is_before_the_push_of_a_later_lap",
        quick=True,
    ),
    Mutant(
        "a lap's signature is read without acquire",
        _P + "signature.h",
        "    if (turn.call.laps > 1) theirs = ld_acquire_sys(mailbox);  // the same again\n",
        "",
        _LITMUS + "test_rearming_is_before_the_push_of_a_later_lap",
    ),
    Mutant(
        "the first lap's signature is read without acquire",
        _P + "signature.h",
        "if (turn.call.laps > 1) theirs",
        "if (lap > 0) theirs",
        _LITMUS + "test_rearming_is_before_the_push_of_a_later_lap",
    ),
    Mutant(
        "the fence of a lap is of the GPU alone",
        _P + "memory.h",
        'fence_sys() { asm volatile("fence.acq_rel.sys;"',
        'fence_sys() { asm volatile("fence.acq_rel.gpu;"',
        _LITMUS + "test_rearming_is_before_the_push_of_a_later_lap",
    ),
    Mutant(
        "an exchange within a block alone",
        _P + "memory.h",
        "atom.relaxed.gpu.global",
        "atom.relaxed.cta.global",
        _LITMUS + "test_one_failure_of_a_generation_writes_the_record",
    ),
    Mutant(
        "a grid does not wait for the grid before",
        _P + "memory.h",
        "setp.ne.u32 known",
        "setp.eq.u32 known",
        _LITMUS + "test_rearming_is_before_the_next_push",
    ),
]
