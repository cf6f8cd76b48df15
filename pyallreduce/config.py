# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The settings: the PYALLREDUCE_* variables, read once into a frozen `Config`.

Anything unknown is refused with the choices, so that a typing mistake never passes for a default.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pyallreduce.errors import ConfigError

__all__ = ["VARIABLES", "Algorithm", "Backend", "Config", "Variable"]

Backend = Literal["auto", "native", "nccl"]
Algorithm = Literal["auto", "one_shot", "two_shot"]

_PREFIX = "PYALLREDUCE_"
_VLLM_BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_SLAB_RANGE = (64 * _KIB, 16 * _GIB)
# The environment keeps to whole seconds and more: below, a busy machine passes for a dead one.
# Only tests, which build a Config directly, go down to the first bound.
_TIMEOUT_RANGE_MS = (100, 86_400_000)
_TIMEOUT_FLOOR_ENV_MS = 1_000
_PROOF_MS = 10_000


@dataclass(frozen=True)
class Config:
    """The settings of one communicator.

    Args:
        backend: "auto" lets the probe decide, "native" raises where it cannot be had, "nccl" skips
            the native path.
        algorithm: "auto" chooses by size; the others force one wherever it is possible.
        slab_bytes: device memory that this rank shares, in bytes, 64 KiB to 16 GiB.
        timeout_ms: longest wait of one call for its peers, in ms, at least 100.
        notice_ms: a wait that lasts this long gets a line in the log, in ms.
        exchange_timeout_ms: longest wait of each step of the start-up exchange, in ms.
        share_gpu: allows several ranks on one GPU, which take turns: slow, an aid for tests.
        batch_invariant: no size goes to NCCL, so that one order of summation holds for all.
        tuning_file: where `pyallreduce tune` keeps its tables; empty for the usual place, "off"
            for the shipped tables.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """

    backend: Backend = "auto"
    algorithm: Algorithm = "auto"
    slab_bytes: int = 64 * _MIB
    timeout_ms: int = 60_000
    notice_ms: int = 5_000
    exchange_timeout_ms: int = 60_000
    share_gpu: bool = False
    batch_invariant: bool = False
    tuning_file: str = ""

    def __post_init__(self) -> None:
        _require_choice("backend", self.backend, get_args(Backend))
        _require_choice("algorithm", self.algorithm, get_args(Algorithm))
        _require_choice("share_gpu", self.share_gpu, (False, True))
        _require_choice("batch_invariant", self.batch_invariant, (False, True))
        _require_text("tuning_file", self.tuning_file)
        _require_range("slab_bytes", self.slab_bytes, *_SLAB_RANGE)
        _require_range("timeout_ms", self.timeout_ms, *_TIMEOUT_RANGE_MS)
        _require_range("notice_ms", self.notice_ms, *_TIMEOUT_RANGE_MS)
        _require_range("exchange_timeout_ms", self.exchange_timeout_ms, *_TIMEOUT_RANGE_MS)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Config:
        """Read the PYALLREDUCE_* variables of `environ`; an empty one counts as unset.

        VLLM_BATCH_INVARIANT=1 asks for `batch_invariant` as well: either of the two does.

        Raises:
            ConfigError: an unknown value, with the choices, or an unknown variable, with the
                known ones.
        """
        known = {variable.name: variable for variable in VARIABLES}
        fields: dict[str, Any] = {}
        for name, text in environ.items():
            if not name.startswith(_PREFIX) and name != _VLLM_BATCH_INVARIANT:
                continue
            if name not in known:
                raise ConfigError(_unknown(name, list(known)))
            variable = known[name]
            if text.strip():
                value = variable.read(text)
                if variable.field:
                    fields[variable.field] = fields.get(variable.field) or value
        return cls(**fields)

    @property
    def patient_ms(self) -> int:
        """The longest wait while ranks may be far apart for good reasons, in ms.

        That is so until the first call has ended, around graph captures, and where the caller
        says so: ranks load, compile and capture at their own pace. Ten times the usual.
        """
        return min(10 * self.timeout_ms, _TIMEOUT_RANGE_MS[1])

    @property
    def proof_ms(self) -> int:
        """The longest wait of each live check at start-up, in ms: ranks come to it together."""
        return min(self.timeout_ms, _PROOF_MS)

    def digest(self) -> bytes:
        """8 bytes over the settings that all ranks must share.

        The times are left out: each rank may bound its own waits. So is the place of the tuned
        tables: the ranks agree on what is in them.
        """
        shared = (
            self.backend,
            self.algorithm,
            self.slab_bytes,
            self.share_gpu,
            self.batch_invariant,
        )
        return hashlib.blake2b(repr(shared).encode(), digest_size=8).digest()


@dataclass(frozen=True)
class Variable:
    """One environment variable, as `pyallreduce info` and the documentation show it.

    `field` is the field of `Config` that it sets; empty for one that only the build or an
    integration reads.
    """

    name: str
    values: str
    default: str
    meaning: str
    field: str = ""
    parse: Callable[[str], object] = str

    def read(self, text: str) -> object:
        """Parse `text`, or raise a ConfigError that names this variable and its values."""
        try:
            return self.parse(text.strip())
        except ValueError:
            message = f"{self.name}={text!r}: expected {self.values}"
            raise ConfigError(message) from None


def _choice(*choices: str) -> Callable[[str], object]:
    def parse(text: str) -> object:
        if text not in choices:
            raise ValueError(text)
        return text

    return parse


def _flag(text: str) -> object:
    return _choice("0", "1")(text) == "1"


def _integer_flag(text: str) -> object:
    return bool(int(text))  # as vLLM reads it


def _size(text: str) -> object:
    """Bytes from "67108864", "64M" or "64MiB"; the units are powers of 1024."""
    match = re.fullmatch(r"([0-9]{1,18})(?:([KMG])(?:iB)?)?", text)
    if match is None:
        raise ValueError(text)
    unit = {None: 1, "K": _KIB, "M": _MIB, "G": _GIB}[match[2]]
    return _within(int(match[1]) * unit, _SLAB_RANGE)


def _milliseconds(text: str) -> object:
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise ValueError(text)
    return _within(int(text), (_TIMEOUT_FLOOR_ENV_MS, _TIMEOUT_RANGE_MS[1]))


def _within(value: int, bounds: tuple[int, int]) -> int:
    if not bounds[0] <= value <= bounds[1]:
        raise ValueError(value)
    return value


def _unknown(name: str, known: list[str]) -> str:
    meant = {other.removeprefix(_PREFIX): other for other in known}
    close = difflib.get_close_matches(name.removeprefix(_PREFIX), meant, n=1)
    hint = f" (did you mean {meant[close[0]]}?)" if close else ""
    return f"unknown variable {name}{hint}; the known ones are {', '.join(known)}"


def _require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    # By type as well: 1 == True, and a Config must hold what it says.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        message = f"{name}={value!r}: expected one of {listed}"
        raise ConfigError(message)


def _require_text(name: str, value: object) -> None:
    if type(value) is not str:
        message = f"{name}={value!r}: expected text"
        raise ConfigError(message)


def _require_range(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        message = f"{name}={value!r}: expected an integer from {low} to {high}"
        raise ConfigError(message)


VARIABLES: tuple[Variable, ...] = (
    Variable(
        name="PYALLREDUCE_BACKEND",
        values="auto, native or nccl",
        default=Config.backend,
        meaning="auto: the probe decides; native: raise where it cannot be had; nccl: never native",
        field="backend",
        parse=_choice(*get_args(Backend)),
    ),
    Variable(
        name="PYALLREDUCE_ALGO",
        values="auto, one_shot or two_shot",
        default=Config.algorithm,
        meaning="auto: by message size; the others force one algorithm where it is possible",
        field="algorithm",
        parse=_choice(*get_args(Algorithm)),
    ),
    Variable(
        name="PYALLREDUCE_SLAB_BYTES",
        values="bytes from 64K to 16G, such as 64M or 67108864",
        default="64M",
        meaning="memory that each rank shares with its peers",
        field="slab_bytes",
        parse=_size,
    ),
    Variable(
        name="PYALLREDUCE_TIMEOUT_MS",
        values="milliseconds from 1000 to 86400000",
        default=str(Config.timeout_ms),
        meaning="longest wait of one call for its peers; ten times that until the first call has "
        "ended, and around captures",
        field="timeout_ms",
        parse=_milliseconds,
    ),
    Variable(
        name="PYALLREDUCE_NOTICE_MS",
        values="milliseconds from 1000 to 86400000",
        default=str(Config.notice_ms),
        meaning="a wait that lasts this long gets a line in the log",
        field="notice_ms",
        parse=_milliseconds,
    ),
    Variable(
        name="PYALLREDUCE_EXCHANGE_TIMEOUT_MS",
        values="milliseconds from 1000 to 86400000",
        default=str(Config.exchange_timeout_ms),
        meaning="longest wait of each step of the start-up exchange",
        field="exchange_timeout_ms",
        parse=_milliseconds,
    ),
    Variable(
        name="PYALLREDUCE_SHARE_GPU",
        values="0 or 1",
        default="0",
        meaning="1 allows several ranks on one GPU, which take turns: slow, an aid for tests",
        field="share_gpu",
        parse=_flag,
    ),
    Variable(
        name="PYALLREDUCE_BATCH_INVARIANT",
        values="0 or 1",
        default="0",
        meaning="1: no size goes to NCCL, so that one order of summation holds for all",
        field="batch_invariant",
        parse=_flag,
    ),
    Variable(
        name=_VLLM_BATCH_INVARIANT,
        values="an integer",
        default="0",
        meaning="vLLM's own variable; all but 0 ask for the same",
        field="batch_invariant",
        parse=_integer_flag,
    ),
    Variable(
        name="PYALLREDUCE_TUNING_FILE",
        values="a path, or off",
        default="",
        meaning="where `pyallreduce tune` keeps its tables; off: the shipped tables are used",
        field="tuning_file",
    ),
    Variable(
        name="PYALLREDUCE_VLLM_EXCLUSIVE",
        values="0 or 1",
        default="0",
        meaning="read by the vLLM plugin: 1 switches off vLLM's other all-reduces, but for NCCL",
        parse=_flag,
    ),
    Variable(
        name="PYALLREDUCE_COMMIT",
        values="a commit",
        default="",
        meaning="named in result files in the place of what the checkout says",
    ),
    Variable(
        name="PYALLREDUCE_CUDA",
        values="AUTO, ON or OFF",
        default="AUTO",
        meaning="read by the build alone: whether the extension is compiled with CUDA",
    ),
)
