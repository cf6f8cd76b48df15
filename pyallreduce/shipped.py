# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The shipped dispatch tables, by world size: the one place where these numbers stand.

An entry is (largest message in bytes, algorithm, blocks, lanes); 0 blocks or lanes leave the shape
to the rule of `policy.py`. bench/sweep.py measures what belongs here, bench/NOTES.md says when it
was.
"""

from __future__ import annotations

from pyallreduce.table import MAX_BYTES, Entry, Table

__all__ = ["GPU", "HOST"]

_KIB, _MIB = 1024, 1024 * 1024


def _modelled(one_shot_limit: int) -> Table:
    """Unmeasured: two-shot saves (N-1)(1-2/N) of the message on a wire of 365 GB/s and costs about
    1.3 us for its second hop. With 224 lanes large messages go in laps through the default slab."""
    return Table(
        (
            Entry(one_shot_limit, "one_shot"),
            Entry(4 * _MIB, "two_shot"),
            Entry(MAX_BYTES, "two_shot", lanes=224),
        )
    )


GPU: dict[int, Table] = {
    # Measured on two H200s: up to 64 KiB bench/results/sweep-h200-2-small.json, up to 1 MiB
    # race-edges-h200-2.txt, but for 640 KiB, and from 1 to 6 MiB race-shapes-h200-2.txt, 8 MiB
    # compare-h200-2.json, above sweep-h200-2-laps.json and race-park-h200-2.txt.
    2: Table(
        (
            Entry(2 * _KIB, "one_shot", lanes=64),
            Entry(16 * _KIB, "one_shot"),
            Entry(64 * _KIB, "one_shot", lanes=64),
            Entry(128 * _KIB, "one_shot", lanes=128),
            Entry(448 * _KIB, "one_shot", lanes=256),
            Entry(512 * _KIB, "one_shot", lanes=128),
            Entry(640 * _KIB, "one_shot", blocks=90, lanes=256),
            Entry(1 * _MIB, "one_shot", lanes=512),
            Entry(6 * _MIB, "one_shot", blocks=90, lanes=256),
            Entry(8 * _MIB, "one_shot"),
            Entry(MAX_BYTES, "two_shot", lanes=512),
        )
    ),
    # Measured on four H200s with three ranks: up to 512 KiB bench/results/sweep-h200-3-small.json,
    # above sweep-h200-3.json.
    3: Table(
        (
            Entry(128 * _KIB, "one_shot", lanes=64),
            Entry(256 * _KIB, "one_shot", lanes=128),
            Entry(512 * _KIB, "two_shot", lanes=128),
            Entry(4 * _MIB, "two_shot"),
            Entry(MAX_BYTES, "two_shot", lanes=480),
        )
    ),
    # The best shapes in race-apart-h200-4.txt. Where four ranks change to two-shot: by where lines
    # through 128 and 256 KiB of compare-h200-4.json cross.
    4: Table(
        (
            Entry(1 * _KIB, "one_shot", lanes=32),
            Entry(32 * _KIB, "one_shot", lanes=64),
            Entry(224 * _KIB, "one_shot", lanes=128),
            Entry(512 * _KIB, "two_shot", lanes=128),
            Entry(64 * _MIB, "two_shot", lanes=256),
            Entry(MAX_BYTES, "two_shot", lanes=480),
        )
    ),
    5: _modelled(192 * _KIB),
    6: _modelled(128 * _KIB),
    7: _modelled(96 * _KIB),
    8: _modelled(64 * _KIB),
}

# On the host a hop is a context switch or two: one-shot until its copies outweigh that.
HOST = Table((Entry(64 * _KIB, "one_shot"), Entry(MAX_BYTES, "two_shot")))
