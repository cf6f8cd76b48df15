# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""The PYALLREDUCE_* variables become a Config, or a refusal that lists the choices."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyallreduce.config import VARIABLES, Config
from pyallreduce.errors import ConfigError

MIB = 1 << 20


def test_defaults() -> None:
    config = Config.from_env({})
    assert config == Config()
    assert (config.backend, config.algorithm) == ("auto", "auto")
    assert config.slab_bytes == 64 * MIB
    assert (config.timeout_ms, config.exchange_timeout_ms) == (60_000, 60_000)
    assert config.share_gpu is False


@pytest.mark.parametrize("ours", ["0", "1", ""])
@pytest.mark.parametrize("vllms", ["0", "1", ""])
def test_either_variable_asks_for_batch_invariance(ours: str, vllms: str) -> None:
    environ = {"PYALLREDUCE_BATCH_INVARIANT": ours, "VLLM_BATCH_INVARIANT": vllms}
    assert Config.from_env(environ).batch_invariant is ("1" in (ours, vllms))
    backwards = dict(reversed(environ.items()))
    assert Config.from_env(backwards) == Config.from_env(environ)


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().backend = "nccl"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("PYALLREDUCE_BACKEND", "native", "backend", "native"),
        ("PYALLREDUCE_BACKEND", " nccl ", "backend", "nccl"),
        ("PYALLREDUCE_ALGO", "two_shot", "algorithm", "two_shot"),
        ("PYALLREDUCE_SLAB_BYTES", "67108864", "slab_bytes", 64 * MIB),
        ("PYALLREDUCE_SLAB_BYTES", "64M", "slab_bytes", 64 * MIB),
        ("PYALLREDUCE_SLAB_BYTES", "64MiB", "slab_bytes", 64 * MIB),
        ("PYALLREDUCE_SLAB_BYTES", "512K", "slab_bytes", MIB // 2),
        ("PYALLREDUCE_SLAB_BYTES", "1G", "slab_bytes", 1024 * MIB),
        ("PYALLREDUCE_TIMEOUT_MS", "1000", "timeout_ms", 1000),
        ("PYALLREDUCE_EXCHANGE_TIMEOUT_MS", "5000", "exchange_timeout_ms", 5000),
        ("PYALLREDUCE_SHARE_GPU", "1", "share_gpu", True),
        ("PYALLREDUCE_SHARE_GPU", "0", "share_gpu", False),
        ("PYALLREDUCE_BATCH_INVARIANT", "1", "batch_invariant", True),
        ("VLLM_BATCH_INVARIANT", "1", "batch_invariant", True),
        ("VLLM_BATCH_INVARIANT", "2", "batch_invariant", True),
        ("VLLM_BATCH_INVARIANT", "00", "batch_invariant", False),
        ("PYALLREDUCE_TUNING_FILE", "off", "tuning_file", "off"),
        ("PYALLREDUCE_TUNING_FILE", "/a/b.json", "tuning_file", "/a/b.json"),
    ],
)
def test_reads_each_variable(name: str, text: str, field: str, value: object) -> None:
    changed: dict[str, Any] = {field: value}
    assert Config.from_env({name: text}) == dataclasses.replace(Config(), **changed)


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_the_table_is_true(variable: Any) -> None:
    # The default that is shown is the default, and reading it changes nothing.
    assert Config.from_env({variable.name: variable.default}) == Config()
    assert Config.from_env({variable.name: ""}) == Config()
    assert variable.values
    assert variable.meaning


def test_the_table_covers_every_setting() -> None:
    assert {v.field for v in VARIABLES} - {""} == {f.name for f in dataclasses.fields(Config)}


@pytest.mark.parametrize(
    ("name", "text", "listed"),
    [
        ("PYALLREDUCE_BACKEND", "nvshmem", "auto, native or nccl"),
        ("PYALLREDUCE_BACKEND", "NCCL", "auto, native or nccl"),
        ("PYALLREDUCE_ALGO", "ring", "auto, one_shot or two_shot"),
        ("PYALLREDUCE_SHARE_GPU", "yes", "0 or 1"),
        ("PYALLREDUCE_VLLM_EXCLUSIVE", "2", "0 or 1"),
        ("PYALLREDUCE_SLAB_BYTES", "64Q", "64M"),
        ("PYALLREDUCE_SLAB_BYTES", "1K", "64K"),
        ("PYALLREDUCE_SLAB_BYTES", "-1", "64K"),
        ("PYALLREDUCE_SLAB_BYTES", "9" * 5000, "16G"),
        ("PYALLREDUCE_TIMEOUT_MS", "999", "1000"),
        ("PYALLREDUCE_TIMEOUT_MS", "60s", "milliseconds"),
        ("PYALLREDUCE_EXCHANGE_TIMEOUT_MS", "1e9", "milliseconds"),
    ],
)
def test_refuses_a_value_and_lists_the_choices(name: str, text: str, listed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({name: text})
    assert name in str(caught.value)
    assert listed in str(caught.value)


def test_refuses_an_unknown_variable_and_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({"PYALLREDUCE_BACKENT": "nccl"})
    assert "did you mean PYALLREDUCE_BACKEND?" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Config.from_env({"PYALLREDUCE_FOO": "1"})
    assert "did you mean" not in str(caught.value), "the prefix alone is alike"
    for variable in VARIABLES:
        assert variable.name in str(caught.value)


def test_leaves_alone_what_is_not_its_own() -> None:
    environ = {"PATH": "/bin", "NCCL_ALGO": "Ring", "PYALLREDUCE_CUDA": "OFF"}
    assert Config.from_env(environ) == Config()


@given(st.sampled_from(VARIABLES), st.text())
def test_any_text_gives_a_config_or_a_config_error(variable: Any, text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(Config.from_env({variable.name: text}), Config)


@pytest.mark.parametrize(
    "fields",
    [
        {"backend": "gloo"},
        {"algorithm": "ring"},
        {"slab_bytes": 1024},
        {"slab_bytes": 64.0 * MIB},
        {"timeout_ms": 99},
        {"timeout_ms": True},
        {"exchange_timeout_ms": -1},
        {"share_gpu": 1},
        {"batch_invariant": 1},
        {"tuning_file": None},
    ],
    ids=str,
)
def test_refuses_wrong_fields_too(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Config(**fields)


def test_tests_may_wait_less_than_users() -> None:
    assert Config(timeout_ms=100).timeout_ms == 100


@pytest.mark.parametrize(
    ("fields", "agrees"),
    [
        ({}, True),
        ({"timeout_ms": 1000}, True),
        ({"exchange_timeout_ms": 1000}, True),
        ({"backend": "native"}, False),
        ({"algorithm": "one_shot"}, False),
        ({"slab_bytes": 32 * MIB}, False),
        ({"share_gpu": True}, False),
        ({"batch_invariant": True}, False),
        ({"tuning_file": "off"}, True),
    ],
    ids=str,
)
def test_digest_covers_what_ranks_must_share(fields: dict[str, Any], agrees: bool) -> None:
    digest = Config(**fields).digest()
    assert len(digest) == 8
    assert (digest == Config().digest()) is agrees
