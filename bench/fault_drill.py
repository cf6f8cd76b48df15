# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Keep a record of the fault matrix, of deaths and how soon they are told, and of many starts.

python bench/fault_drill.py OUT.json [--gpus N] [--ranks N] [--matrix] [--at-once N] [--kills 20]
    [--starts 1000] [--late 50] [--stalls 3]

Without --gpus the ranks are processes on the CPU. The cases and what is asked of them are those of
tests/faults; in the matrix the first and the last of the ranks are the victims. --at-once: so many
of the groups that their fault ends, each a few seconds, go beside each other. What a group survives
has the GPUs to itself: contexts take turns, and six groups at once missed deadlines of 1.5 s.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import click

from pyallreduce.bench.timing import quantile
from pyallreduce.info import header
from pyallreduce.launch import LaunchError, Placement, launch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))
from cases import Case, judge, lethal, survivable
from harness import Outcomes, run

_KEPT = ("end", "backend", "code", "took", "wrong", "usable_s")
_STALL_MS = 8_000  # the deadline; a stall is noticed after the usual 5 s


def matrix(ranks: int, gpus: int, at_once: int) -> Iterator[list[dict[str, Any]]]:
    """Of every case, whether it ended as promised, and how, by rank; whenever a group has ended,
    those of all so far."""
    together, alone = list(survivable(ranks)), list(lethal(ranks))
    ended = _go_through(together, 150.0 * ranks, gpus)
    yield list(ended.values())
    with ThreadPoolExecutor(at_once) as groups:
        running = [groups.submit(_go_through, [case], 90.0, gpus) for case in alone]
        for group in as_completed(running):
            ended |= group.result()
            yield [ended[case.name] for case in (*together, *alone) if case.name in ended]


def _go_through(cases: list[Case], deadline_s: float, gpus: int) -> dict[str, dict[str, Any]]:
    outcomes: Outcomes = {}
    try:
        outcomes = run(cases, gpus, deadline_s)
    except LaunchError as error:  # its cases have no outcome, which is a complaint
        click.echo(error)
    return {case.name: _record(case, outcomes) for case in cases}


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
        for records in matrix(ranks, gpus, at_once):
            keep("matrix", records)
        bad = [record["case"] for record in content["matrix"] if record["complaints"]]
        click.echo(f"{len(content['matrix'])} cases, {len(bad)} not as promised: {bad}")


if __name__ == "__main__":
    main()
