# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Keep a record of the fault matrix, of deaths and how soon they are told, and of many starts.

python bench/fault_drill.py OUT.json [--gpus N] [--ranks N] [--matrix] [--only REGEX] [--at-once N]
    [--kills 20] [--starts 1000] [--late 50] [--stalls 3]

Without --gpus the ranks are processes on the CPU. The cases and what is asked of them are those of
tests/faults; in the matrix the first and the last of the ranks are the victims.

--only: cases in whose names, such as "stop 3 s, first call, rank 0 of 2", the expression is found.
--at-once: so many of the groups that their fault ends, each a few seconds, go beside each other.
What a group survives has the GPUs to itself: contexts take turns, and six groups at once missed
deadlines of 1.5 s. For the same reason more ranks than GPUs, which share them, are slow.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import click

from pyallreduce.bench.timing import quantile
from pyallreduce.info import header
from pyallreduce.launch import LaunchError, Placement, launch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))
from cases import Case, judge, matrix
from harness import Outcomes, run

_KEPT = ("end", "backend", "code", "took", "wrong", "usable_s")
_STALL_MS = 8_000  # the deadline; a stall is noticed after the usual 5 s


def go_through(
    cases: list[Case], gpus: int, at_once: int, keep: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Of each case, whether it ended as promised, and how, by rank; whenever one has ended, `keep`
    gets those of all so far."""
    by_name = {case.name: case for case in cases}
    together, alone = [c for c in cases if not c.lethal], [c for c in cases if c.lethal]
    ended: dict[str, dict[str, Any]] = {}

    def note(name: str, outcomes: Outcomes) -> None:
        ended[name] = _record(by_name[name], outcomes)
        keep([ended[name] for name in by_name if name in ended])

    def group(some: list[Case], deadline_s: float) -> Outcomes:
        try:
            return run(some, gpus, deadline_s, note)
        except LaunchError as error:
            click.echo(error)
            return {}

    if together:
        group(together, 150.0 * together[0].ranks)
    for case in together:  # what was cut off has no outcome, which is a complaint
        if case.name not in ended:
            note(case.name, {})
    with ThreadPoolExecutor(at_once) as groups:
        running = {groups.submit(group, [case], 90.0): case for case in alone}
        for done in as_completed(running):
            note(running[done].name, done.result())
    return list(ended.values())


def _record(case: Case, outcomes: Outcomes) -> dict[str, Any]:
    seen = outcomes.get(case.name, {})
    return {
        "case": case.name,
        "complaints": judge(case, seen),
        "ranks": {str(r): {k: o[k] for k in _KEPT if k in o} for r, o in seen.items()},
    }


def kills(ranks: int, gpus: int, count: int) -> Iterator[dict[str, Any]]:
    """Seconds from a survivor's call, in which it waits for a rank that dies, to its exception;
    after each kill those of all so far."""
    case = Case("kill", "steady", 1, ranks)
    by_rank, complaints = [], 0
    for number in range(1, count + 1):
        seen = run([case], gpus, 60).get(case.name, {})
        complaints += bool(judge(case, seen))
        by_rank.append({str(rank): outcome["took"] for rank, outcome in sorted(seen.items())})
        took = [seconds for survivors in by_rank for seconds in survivors.values()]
        yield {
            "kills": number,
            "not_as_promised": complaints,
            "took_s": by_rank,
            "median_s": statistics.median(took) if took else None,
            "p99_s": quantile(took, 0.99) if took else None,
        }


def starts(placement: Placement, count: int) -> dict[str, Any]:
    """False vetoes, and ms of a start and of its live validation (the slowest rank's)."""
    results = launch("life_targets:starts", {"starts": count}, placement, deadline_s=60 + count)
    validation = [max(times) for times in zip(*(r["validation_ms"] for r in results), strict=True)]
    return {
        "starts": count,
        "vetoes": sum(len(r["vetoes"]) for r in results),
        "wrong": sum(r["wrong"] for r in results),
        "start_ms_median": round(statistics.median(results[0]["ms"]), 1),
        "validation_ms_first": round(validation[0], 1),
        "validation_ms_median": round(statistics.median(validation), 1),
        "validation_ms_max": round(max(validation), 1),
    }


def stalls(placement: Placement, count: int) -> dict[str, Any]:
    """A rank that stays away: seconds until each other rank's log says so, and until it ends."""
    options, seen = {"timeout_ms": _STALL_MS}, []
    for _ in range(count):
        results = launch("life_targets:stall", options, placement, deadline_s=60)
        seen += results[:-1]
    return {
        "stalls": count,
        "deadline_s": _STALL_MS / 1e3,
        "noticed_s": [outcome.get("noticed_s") for outcome in seen],
        "ended_s": [outcome.get("ended_s") for outcome in seen],
        "line": seen[0]["line"],
        "error": seen[0]["ended"],
    }


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--gpus", default=0)
@click.option("--ranks", type=click.IntRange(2, 8), default=2)
@click.option("--matrix", "with_matrix", is_flag=True)
@click.option("--only", default="", help="Of the matrix: where this is found in the name.")
@click.option("--at-once", type=click.IntRange(1), default=1)
@click.option("--kills", "kill_count", default=0)
@click.option("--starts", "start_count", default=0)
@click.option("--stalls", "stall_count", default=0)
@click.option("--late", default=0.0, help="Seconds by which one rank comes late to a call.")
def main(
    output: Path,
    gpus: int,
    ranks: int,
    with_matrix: bool,
    only: str,
    at_once: int,
    kill_count: int,
    start_count: int,
    stall_count: int,
    late: float,
) -> None:
    placement = Placement(ranks, gpus)
    command = f"bench/fault_drill.py {' '.join(sys.argv[2:])}"
    content: dict[str, Any] = {"header": header(command), "where": str(placement)}

    def keep(part: str, found: object) -> None:  # a drill that is cut short keeps what it had
        content[part] = found
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    for so_far in kills(ranks, gpus, kill_count):
        keep("kills", so_far)
        click.echo({k: v for k, v in so_far.items() if k != "took_s"})
    if start_count:
        keep("starts", starts(placement, start_count))
        click.echo(content["starts"])
    if stall_count:
        keep("stalls", stalls(placement, stall_count))
        click.echo(content["stalls"])
    if late:
        results = launch("life_targets:late", {"seconds": late}, placement, deadline_s=late + 60)
        keep("late", {"seconds": late, "ranks": results})
        click.echo(content["late"])
    if with_matrix:
        chosen = [case for case in matrix(ranks) if re.search(only, case.name)]
        records = go_through(chosen, gpus, at_once, partial(keep, "matrix"))
        bad = [record["case"] for record in records if record["complaints"]]
        click.echo(f"{len(records)} cases, {len(bad)} not as promised: {bad}")


if __name__ == "__main__":
    main()
