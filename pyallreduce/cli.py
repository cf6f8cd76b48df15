# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: pyallreduce info | check | bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from pyallreduce.bench.options import DTYPE_NAMES, Mode, Options, parse_size
from pyallreduce.config import Config
from pyallreduce.errors import PyallreduceError

__all__ = ["bench", "check", "info", "main"]

_BACKENDS = ("auto", "one_shot", "two_shot", "nccl", "gloo")
_GPU_RANGE, _CPU_RANGE = ("1K", "256M"), ("1K", "4M")
_SAMPLES = 50


def _size(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_ranks = click.option(
    "--ranks", type=click.IntRange(2, 8), help="Ranks to start. [default: one a GPU, or 4]"
)
_device = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="auto: the GPUs where there are two or more, else the CPU.",
)
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(10),
    default=1800.0,
    show_default=True,
    help="Seconds after which the command gives up and ends its ranks.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyallreduce")
def main() -> None:
    """All-reduce for the GPUs of one host over NVLink push mailboxes."""


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def info(as_json: bool) -> None:
    """Versions, GPUs, and which backend a group on this machine would use, and why.

    Exits with 0 on any machine.
    """
    from pyallreduce.info import gather
    from pyallreduce.info_text import lines

    found = gather()
    text = json.dumps(found.as_json(), indent=1) if as_json else "\n".join(lines(found))
    click.echo(text)


@main.command()
@_ranks
@_device
@_timeout
@click.option("--quick", is_flag=True, help="Fewer sizes and graph replays.")
@click.option(
    "-d", "--datatype", "dtypes", type=click.Choice(["float32", "float16", "bfloat16"]),
    multiple=True, help="Check this one; may be repeated. [default: all]",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="All that is wrong, table, edges, remedy.")
@click.option(
    "--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="Result file."
)
@click.option("--inject-wrong-bit", "inject", is_flag=True, hidden=True)
def check(
    ranks: int | None,
    device: Any,
    timeout: float,
    quick: bool,
    dtypes: tuple[str, ...],
    verbose: bool,
    output: Path | None,
    inject: bool,
) -> None:
    """Start ranks and verify every algorithm, dtype and size, bit for bit.

    Exits with 1 if anything is wrong. On a machine where the native path cannot be had the fallback
    is verified; PYALLREDUCE_BACKEND=native makes that an error.
    """
    from pyallreduce.check.command import run

    verdict = _or_exit(
        lambda: run(
            ranks,
            device,
            timeout_s=timeout,
            quick=quick,
            dtypes=dtypes,
            verbose=verbose,
            inject=inject,
        )
    )
    if output is not None:
        from pyallreduce.info import header

        content = {"header": header(_command()), **verdict.as_json()}
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if verdict.passed else 1)


@main.command()
@_ranks
@_device
@_timeout
@click.option(
    "-b", "--minbytes", callback=_size, metavar="BYTES", help="Smallest message. [default: 1K]"
)
@click.option(
    "-e",
    "--maxbytes",
    callback=_size,
    metavar="BYTES",
    help="Largest. [default: 256M on GPUs, 4M on the CPU]",
)
@click.option("-f", "--stepfactor", type=click.IntRange(2), default=2, show_default=True)
@click.option(
    "-n",
    "--iters",
    type=click.IntRange(1),
    help="Calls of a sample. [default: graphs 200, above 1M 50; eager 20, above 64K 5, above 1M 1]",
)
@click.option("-w", "--warmup_iters", type=click.IntRange(0), default=5, show_default=True)
@click.option(
    "-c", "--check", "verify", type=click.IntRange(0, 1), default=1, show_default=True,
    help="1: verify each cell before it is timed.",
)  # fmt: skip
@click.option(
    "-d",
    "--datatype",
    type=click.Choice([*DTYPE_NAMES, "all"]),
    default="bfloat16",
    show_default=True,
)
@click.option(
    "-G",
    "--cudagraph",
    type=click.IntRange(0),
    help="Replays of each CUDA graph; 0: eager calls. [default: 50 on GPUs, 0 on the CPU]",
)
@click.option("--eager", is_flag=True, help="Time eager calls besides graphs.")
@click.option(
    "--samples", type=click.IntRange(1), default=_SAMPLES, show_default=True,
    help="Samples of eager calls.",
)  # fmt: skip
@click.option(
    "--backend", "chosen", type=click.Choice(_BACKENDS), multiple=True,
    help="Measure this one; may be repeated. [default: all that serve]",
)  # fmt: skip
@click.option(
    "-J", "--json", "--output_file", "output", type=click.Path(dir_okay=False, path_type=Path),
    help="Result file (JSON).",
)  # fmt: skip
def bench(
    ranks: int | None,
    device: Any,
    timeout: float,
    minbytes: int | None,
    maxbytes: int | None,
    stepfactor: int,
    iters: int | None,
    warmup_iters: int,
    verify: int,
    datatype: str,
    cudagraph: int | None,
    eager: bool,
    samples: int,
    chosen: tuple[str, ...],
    output: Path | None,
) -> None:
    """Time our algorithms and NCCL (gloo) side by side, with nccl-tests' columns and flags.

    Starts its own ranks, or is one of torchrun's. In place, median of the slowest rank; exits with
    1 if any result is wrong.
    """
    from pyallreduce.bench import command

    place = _or_exit(lambda: command.where(ranks, device))
    low, high = (parse_size(text) for text in (_GPU_RANGE if place.gpus else _CPU_RANGE))
    if cudagraph and not place.gpus:
        raise click.UsageError("-G: CUDA graphs need GPUs; use -G 0")
    replays = cudagraph if cudagraph is not None else (_SAMPLES if place.gpus else 0)
    graph_modes: tuple[Mode, ...] = ("graph", "eager") if eager else ("graph",)
    options = Options(
        min_bytes=max(minbytes if minbytes is not None else low, 4),
        max_bytes=maxbytes if maxbytes is not None else max(high, minbytes or 0),
        factor=stepfactor,
        dtypes=("float32", "float16", "bfloat16")
        if datatype == "all"
        else (DTYPE_NAMES[datatype],),
        modes=graph_modes if replays else ("eager",),
        backends=chosen,
        calls=iters,
        warmup=warmup_iters,
        samples=replays or samples,
        check=bool(verify),
    )
    passed = _or_exit(
        lambda: command.run(options, place, timeout_s=timeout, output=output, command=_command())
    )
    sys.exit(0 if passed else 1)


def _or_exit(action: Any) -> Any:
    """`action()`; an error of ours becomes its message and exit code 1, without a traceback."""
    try:
        Config.from_env()  # an unknown setting is refused once, here, not by each rank
        return action()
    except PyallreduceError as error:
        raise click.ClickException(str(error)) from error


def _command() -> str:
    program = click.get_current_context().find_root().info_name or "pyallreduce"
    return " ".join([program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
