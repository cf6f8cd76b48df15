# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: pyallreduce info | check | bench | tune."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from pyallreduce.bench.options import DTYPE_NAMES, MODES, Mode, Options, parse_modes, parse_size
from pyallreduce.config import Config
from pyallreduce.errors import PyallreduceError

__all__ = ["bench", "check", "info", "main", "tune"]

_BACKENDS = ("auto", "one_shot", "two_shot", "nccl", "gloo")
_GPU_RANGE, _CPU_RANGE = ("1K", "256M"), ("1K", "4M")
_SAMPLES = 50
_STARTING_S = 60.0  # for the ranks of `tune` to come up, and for its last size
_PUBLISHED = 200  # replays of a comparison on GPUs


def _size(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _writable(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """A result file that can't be written would be found out when all is measured."""
    if path is None:
        return None
    if not path.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.parent}")
    try:
        if path.exists():
            path.open("a").close()
        else:  # by a file without a name: torchrun's ranks all ask at once
            tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as error:
        raise click.BadParameter(f"{path} can't be written: {error.strerror}") from error
    return path


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
    "--json", "output", type=click.Path(dir_okay=False, path_type=Path), callback=_writable,
    help="Result file.",
)  # fmt: skip
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

    _not_under_torchrun()
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
    "-b",
    "--minbytes",
    callback=_size,
    metavar="BYTES",
    help="Smallest message, 4 bytes at least. [default: 1K]",
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
    "--samples", type=click.IntRange(1),
    help="Of eager calls; with --compare of every mode, but at most 30 of eager calls. "
    f"[default: {_SAMPLES}, or {_PUBLISHED}]",
)  # fmt: skip
@click.option(
    "--backend", "chosen", type=click.Choice(_BACKENDS), multiple=True,
    help="Measure this one; may be repeated. [default: all that serve]",
)  # fmt: skip
@click.option(
    "-J", "-o", "--json", "--output_file", "output",
    type=click.Path(dir_okay=False, path_type=Path), callback=_writable,
    help="Result file (JSON).",
)  # fmt: skip
@click.option(
    "--compare", is_flag=True,
    help="Ours beside every peer that is installed, each in rank processes of its own.",
)  # fmt: skip
@click.option(
    "--backends", default="", metavar="NAMES",
    help="With --compare: only these, as a,b or a:algorithm.",
)  # fmt: skip
@click.option(
    "--modes", default="", metavar="NAMES",
    help=f"With --compare: of {', '.join(MODES)}. [default: all; eager on the CPU]",
)  # fmt: skip
@click.option(
    "--deadline", type=click.FloatRange(10), default=240.0, show_default=True,
    help="With --compare: seconds after which a backend's processes are ended.",
)  # fmt: skip
@click.option(
    "--cell-seconds", type=click.FloatRange(0.01), default=0.3, show_default=True,
    help="With --compare: replays of a message above 16M take so long.",
)  # fmt: skip
@click.option("--commit", help="With --compare: named in the result, where there is no checkout.")
@click.option(
    "--plot", "plotted", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: draw this result of --compare, PNG and SVG beside it.",
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
    samples: int | None,
    chosen: tuple[str, ...],
    output: Path | None,
    compare: bool,
    backends: str,
    modes: str,
    deadline: float,
    cell_seconds: float,
    commit: str | None,
    plotted: Path | None,
) -> None:
    """Time our algorithms and NCCL (gloo) side by side, with nccl-tests' columns and flags.

    Starts its own ranks, or is one of torchrun's. In place, median of the slowest rank; exits with
    1 if any result is wrong.
    """
    from pyallreduce.bench import command

    if plotted is not None:
        _plot(plotted)
        return
    place = _or_exit(lambda: command.where(ranks, device))
    low, high = (parse_size(text) for text in (_GPU_RANGE if place.gpus else _CPU_RANGE))
    if cudagraph and not place.gpus:
        raise click.UsageError("-G: CUDA graphs need GPUs; use -G 0")
    unserved = "nccl" if place.ranks > place.gpus else "gloo"  # as Placement.backend says
    if unserved in chosen:
        raise click.UsageError(f"--backend {unserved}: it does not carry these ranks' tensors")
    if not compare and (backends or modes):
        raise click.UsageError("--backends and --modes stand with --compare; alone it is --backend")
    replays = cudagraph if cudagraph is not None else (_SAMPLES if place.gpus else 0)
    graph_modes: tuple[Mode, ...] = ("graph", "eager") if eager else ("graph",)
    dtypes = ("float32", "float16", "bfloat16") if datatype == "all" else (DTYPE_NAMES[datatype],)
    options = Options(
        min_bytes=max(minbytes if minbytes is not None else low, 4),
        max_bytes=maxbytes if maxbytes is not None else max(high, minbytes or 0),
        factor=stepfactor,
        dtypes=dtypes,
        modes=graph_modes if replays else ("eager",),
        backends=chosen,
        calls=iters,
        warmup=warmup_iters,
        samples=replays or samples or _SAMPLES,
        check=bool(verify),
    )
    if options.min_bytes > options.max_bytes:
        text = f"no size from {options.min_bytes} (-b) to {options.max_bytes} bytes (-e)"
        raise click.UsageError(text)
    if compare:
        passed = _compare(
            options,
            place,
            backends=backends,
            modes=modes,
            samples=cudagraph or samples or (_PUBLISHED if place.gpus else _SAMPLES),
            limits=(cell_seconds, deadline, timeout),
            output=output,
            commit=commit,
        )
        sys.exit(0 if passed else 1)
    passed = _or_exit(
        lambda: command.run(options, place, timeout_s=timeout, output=output, command=_command())
    )
    sys.exit(0 if passed else 1)


@main.command()
@_ranks
@_device
@click.option("-b", "--minbytes", callback=_size, default="1K", show_default=True, metavar="BYTES")
@click.option(
    "-e", "--maxbytes", callback=_size, metavar="BYTES",
    help="Largest message. [default: 64M on GPUs, 1M on the CPU]",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(1), default=45.0, show_default=True,
    help="No further size is begun after so long.",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), callback=_writable,
    help="Where to store the table. [default: where every start looks for it]",
)  # fmt: skip
def tune(
    ranks: int | None,
    device: Any,
    minbytes: int,
    maxbytes: int | None,
    seconds: float,
    output: Path | None,
) -> None:
    """Measure this machine and store the dispatch table for it, in under a minute.

    Every later start of a group like this one uses it, if all its ranks find the same table. Set
    PYALLREDUCE_TUNING_FILE to keep it elsewhere, or to off for the shipped one.
    """
    from pyallreduce.bench.tune import run
    from pyallreduce.info import gpu_count
    from pyallreduce.launch import place
    from pyallreduce.tuned import path_of

    _not_under_torchrun()
    config = _or_exit(Config.from_env)
    placement = _or_exit(lambda: place(ranks, device, gpus=gpu_count(), share_gpu=config.share_gpu))
    path = output or path_of(config.tuning_file)
    if path is None:
        why = "PYALLREDUCE_TUNING_FILE is off, or this user has no home"
        raise click.UsageError(f"there is no place for the table ({why}): use --output")
    if path.is_dir():
        raise click.UsageError(f"PYALLREDUCE_TUNING_FILE={path} is a folder: name a file in it")
    largest = maxbytes or max(minbytes, parse_size("64M" if placement.gpus else "1M"))
    if minbytes > largest:
        raise click.UsageError(f"no size from {minbytes} (-b) to {largest} bytes (-e)")
    options = {
        "min_bytes": minbytes,
        "max_bytes": largest,
        "seconds": seconds,
        "dtype": "bfloat16",
    }
    table = _or_exit(lambda: run(placement, path, options, timeout_s=seconds + _STARTING_S))
    sys.exit(0 if table is not None else 1)


def _compare(
    options: Options,
    place: Any,
    *,
    backends: str,
    modes: str,
    samples: int,
    limits: tuple[float, float, float],
    output: Path | None,
    commit: str | None,
) -> bool:
    """`limits`: seconds for a large cell, for a backend, for everything."""
    from pyallreduce.bench.compare import Plan
    from pyallreduce.bench.compare_command import run
    from pyallreduce.bench.peers.registry import choose

    try:
        chosen = parse_modes(modes) or (MODES if place.gpus else ("eager",))
        entries = choose(filter(None, backends.split(",")), "cuda" if place.gpus else "cpu")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if not entries:
        raise click.UsageError(f"--backends {backends}: none of these serves this device")
    if not place.gpus and set(chosen) != {"eager"}:
        raise click.UsageError("--modes: CUDA graphs need GPUs; use --modes eager")
    plan = Plan(
        dtypes=options.dtypes,
        modes=chosen,
        sizes=tuple(options.sizes(4)),
        samples=samples,
        warmup=options.warmup,
        seconds=limits[0],
        deadline_s=limits[1],
        timeout_s=limits[2],
        calls=options.calls,
    )
    return bool(
        _or_exit(
            lambda: run(plan, entries, place, output=output, command_line=_command(), commit=commit)
        )
    )


def _plot(path: Path) -> None:
    try:
        from pyallreduce.bench.plot import draw

        written = draw(path)
    except ImportError as error:
        raise click.ClickException(f"{error}: pip install 'pyallreduce[plot]'") from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    for file in written:
        click.echo(file)


def _or_exit(action: Any) -> Any:
    """`action()`; an error of ours, or of the file system, becomes its message and exit code 1,
    without a traceback."""
    try:
        Config.from_env()  # an unknown setting is refused once, here, not by each rank
        return action()
    except (PyallreduceError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _not_under_torchrun() -> None:
    """Each of torchrun's processes would start a set of ranks, all on the same GPUs."""
    from pyallreduce.bench.command import under_torchrun

    if under_torchrun():
        name = click.get_current_context().info_name
        text = f"{name} starts its own ranks: run it without torchrun (RANK and WORLD_SIZE are set)"
        raise click.UsageError(text)


def _command() -> str:
    program = click.get_current_context().find_root().info_name or "pyallreduce"
    return " ".join([program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
