# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.fuzz.frames [--runs N] [--json PATH]`: coverage-guided frames for the decoder.

Each input is decoded as it is, and once more as a whole frame under a checksum that fits, as a
faulty but orderly peer would send it: else hardly any would pass the checksum. What is decoded must
encode to the same bytes, and anything else be a WireError that names a field. `--plant` breaks the
decoder in one place, which must be found.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NONCE = bytes(range(16))


@dataclass(frozen=True)
class Report:
    """Of one campaign. `frames` were decoded, two for each input; `edges` of the decoder's bytecode
    were covered."""

    frames: int
    seconds: float
    edges: int
    corpus: int
    clean: bool
    text: str


def fuzz(runs: int, seed: int = 1, *, plant: bool = False, seconds: int = 7200) -> Report:
    """`runs` inputs in a process of its own: the fuzzer takes its process over."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="frames-") as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for i, frame in enumerate(examples()):
            (corpus / str(i)).write_bytes(frame)
        target = [sys.executable, "-m", "tests.fuzz.frames", "--target"]
        flags = [f"-runs={runs}", f"-seed={seed}", "-max_len=2048", "-len_control=0"]
        flags.append(f"-artifact_prefix={folder}/")
        done = subprocess.run(
            [*target, *(["--plant"] if plant else []), *flags, str(corpus)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        text = done.stdout + done.stderr
        kept = len(list(corpus.iterdir()))
    inputs = [int(n) for n in re.findall(r"^#(\d+)\s", text, re.MULTILINE)]
    covered = [int(n) for n in re.findall(r"cov: (\d+)", text)]
    clean = done.returncode == 0 and "ERROR" not in text
    return Report(
        2 * max(inputs, default=0),
        round(time.monotonic() - start, 1),
        max(covered, default=0),
        kept,
        clean,
        text[-4000:],
    )


def examples() -> list[bytes]:
    """Frames of every kind."""
    from pyallreduce import wire
    from pyallreduce.facts import Link
    from pyallreduce.reasons import Code
    from pyallreduce.table import Entry, Table
    from tests.mutants.smoke import FACTS

    offer = wire.SlabOffer(bytes(64), 64 << 20, 4242, 123, 7, 99, 8, 100, NONCE)
    verdict = wire.Verdict(3, Code.IPC_OPEN, "rank 1")
    table = Table((Entry(4096, "one_shot", 16, 128), Entry(1 << 20, "two_shot")), "tuned")
    place: dict[str, Any] = {"nonce": NONCE, "rank": 1, "world": 2}
    links = (Link("GPU-1", True, 18), Link("GPU-2", False, 0, "lost"))
    return [
        wire.encode_facts(replace(FACTS, links=links), nonce=NONCE),
        wire.encode_slab(offer, **place),
        wire.encode_verdict(verdict, **place),
        wire.encode_table(wire.TableOffer(table), **place),
        wire.encode_table(wire.TableOffer(None), **place),
    ]


def check_frame() -> Callable[[bytes], None]:
    """What is done to each input; an exception is a fault of the decoder."""
    from pyallreduce import wire
    from pyallreduce.errors import WireError
    from pyallreduce.facts import Facts

    encoders: dict[type, Any] = {
        wire.SlabOffer: wire.encode_slab,
        wire.Verdict: wire.encode_verdict,
        wire.TableOffer: wire.encode_table,
    }
    records: dict[wire.Kind, Any] = {kind: record for record, kind in wire._KINDS.items()}

    def check(frame: bytes) -> None:
        try:
            header = wire.read_header(frame)
            got = wire.decode(frame, records[header.kind])
        except WireError as error:
            if not error.field:
                raise  # a refusal says which part is wrong
            return
        if isinstance(got, Facts):
            again = wire.encode_facts(got, nonce=header.nonce)
        else:
            encode = encoders[type(got)]
            again = encode(got, nonce=header.nonce, rank=header.rank, world=header.world)
        assert again == frame

    return check


def whole(data: bytes) -> bytes:
    """A frame of the right size with a checksum that fits."""
    body = data[:2040].ljust(2040, b"\0")
    return body + hashlib.blake2b(body, digest_size=8).digest()


def _target(arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["pyallreduce.wire", "pyallreduce.wire_fields"]):
        from pyallreduce import wire, wire_fields
    if "--plant" in arguments:
        arguments.remove("--plant")

        def unpack(self: Any, raw: Any) -> Any:
            return self.choices[raw]

        wire_fields.Choice.unpack = unpack  # type: ignore[method-assign]
    assert wire.FRAME_BYTES == 2048
    check = check_frame()

    def one(data: bytes) -> None:
        check(data)
        check(whole(data))

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> int:
    if "--target" in sys.argv:
        _target(sys.argv[sys.argv.index("--target") + 1 :])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.frames", description=__doc__)
    parser.add_argument("--runs", type=int, default=5_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = fuzz(options.runs, options.seed, plant=options.plant)
    from pyallreduce import wire

    record = {key: value for key, value in asdict(report).items() if key != "text"}
    record |= {
        "kinds": [kind.name for kind in wire.Kind],
        "seed": options.seed,
        "atheris": importlib.metadata.version("atheris"),
        "python": platform.python_version(),
    }
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(report.text if not report.clean else json.dumps(record))
    return 0 if report.clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
