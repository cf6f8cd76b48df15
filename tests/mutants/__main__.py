# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.mutants [--all] [WORD ...]`: are mutants of the protocol killed by their tests?

Each mutant is made in a copy of the tree. It must build and pass a smoke test (two ranks and a call
of each algorithm; for Python, a frame's round trip and a decision), and then fail its named test.
Exits 0 if all were killed. WORDs pick mutants by what they are called.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, Mutant
from tests.native.programs import ROOT, STIRRED, build_scenarios, run

__all__ = ["Verdict", "judge", "main", "mutated"]

COPIED = ("csrc", "pyallreduce", "tests", "pyproject.toml")
SMOKE = Path(__file__).with_name("smoke.py")
CALM = "0"  # weak_memory.h then holds nothing back
SEEDS = ("1", "2", "3", "4")
DEADLINE_MS = 1_500


@dataclass(frozen=True)
class Verdict:
    """`outcome`: "killed", "SURVIVED", or what went wrong before its test."""

    mutant: Mutant
    outcome: str
    seconds: float


def mutated(mutant: Mutant) -> str:
    """The file's text with the mutation.

    Raises:
        LookupError: the text to change does not stand there exactly once.
    """
    text = (ROOT / mutant.path).read_text(encoding="utf-8")
    if (found := text.count(mutant.old)) != 1:
        message = f"{mutant.what}: {mutant.old!r} stands {found} times in {mutant.path}"
        raise LookupError(message)
    return text.replace(mutant.old, mutant.new)


def judge(mutant: Mutant) -> Verdict:
    """Build, smoke and test one mutant."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, tree / name)
        (tree / mutant.path).write_text(mutated(mutant), encoding="utf-8")
        outcome = (_native if mutant.native else _python)(mutant, tree, Path(folder))
    return Verdict(mutant, outcome, time.monotonic() - start)


def _native(mutant: Mutant, tree: Path, folder: Path) -> str:
    try:
        program = build_scenarios(folder, ("-O0", "-w"), tree)
    except subprocess.CalledProcessError as error:
        return f"does not compile: {error.stderr.splitlines()[0]}"
    if not _holds(program, "smoke", CALM):
        return "fails the smoke test"
    seeds = SEEDS if mutant.killer in STIRRED else SEEDS[:1]
    survived = all(_holds(program, mutant.killer, seed) for seed in seeds)
    return "SURVIVED" if survived else "killed"


def _holds(program: Path, scenario: str, seed: str) -> bool:
    try:
        done = run(program, scenario, seed, seconds=10, deadline_ms=DEADLINE_MS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _python(mutant: Mutant, tree: Path, _folder: Path) -> str:
    environ = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}

    def passes(*arguments: str) -> bool:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tree,
            env=environ,
            capture_output=True,
            timeout=110,
            check=False,
        )
        return done.returncode == 0

    if not passes(str(tree / SMOKE.relative_to(ROOT))):
        return "fails the smoke test"
    quiet = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")
    return "SURVIVED" if passes(*quiet, mutant.test) else "killed"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--all", action="store_true", help="not the quick subset alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("words", nargs="*", help="only mutants whose name has one of these")
    options = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if options.all or options.words or m.quick]
    if options.words:
        chosen = [m for m in chosen if any(word in m.what for word in options.words)]
    for mutant in MUTANTS:
        mutated(mutant)  # a lost anchor is told before anything runs
    killed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(judge, chosen):
            mutant = verdict.mutant
            killed += verdict.outcome == "killed"
            name = mutant.test.removeprefix("tests/")
            print(f"{verdict.outcome:9} {mutant.what:52} {name} ({verdict.seconds:.0f} s)")
            sys.stdout.flush()
    print(f"{killed} of {len(chosen)} killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
