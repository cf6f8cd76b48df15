# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""All-reduce for the GPUs of one host that cannot hang its caller. Importing this touches no
GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyallreduce.communicator import Communicator, Decision
    from pyallreduce.config import Config
    from pyallreduce.errors import (
        AllReduceAborted,
        BackendUnavailable,
        CallMismatch,
        CallRefused,
        CommunicatorClosed,
        ConfigError,
        ExchangeTimeout,
        InvalidCall,
        NotAMember,
        PyallreduceError,
        SlabMemoryError,
    )
    from pyallreduce.reasons import Reason

__all__ = [
    "AllReduceAborted",
    "BackendUnavailable",
    "CallMismatch",
    "CallRefused",
    "Communicator",
    "CommunicatorClosed",
    "Config",
    "ConfigError",
    "Decision",
    "ExchangeTimeout",
    "InvalidCall",
    "NotAMember",
    "PyallreduceError",
    "Reason",
    "SlabMemoryError",
]

_HOMES = {
    "Communicator": "communicator",
    "Config": "config",
    "Decision": "communicator",
    "Reason": "reasons",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pyallreduce' has no attribute {name!r}")
    import importlib

    home = importlib.import_module(f"pyallreduce.{_HOMES.get(name, 'errors')}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
