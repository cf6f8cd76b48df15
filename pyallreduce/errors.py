# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N818 - a call that was refused or aborted is named so, as users will say it
"""Every exception that pyallreduce raises on purpose; all derive from `PyallreduceError`.

Attributes have defaults so that an exception survives the trip between a worker process and its
parent: `BaseException` is rebuilt from its positional arguments alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyallreduce.reasons import Reason

__all__ = [
    "AllReduceAborted",
    "BackendUnavailable",
    "CallMismatch",
    "CallRefused",
    "CommunicatorClosed",
    "ConfigError",
    "ExchangeTimeout",
    "InvalidCall",
    "NotAMember",
    "PyallreduceError",
    "SlabMemoryError",
    "WireError",
]


class PyallreduceError(RuntimeError):
    """Base of all errors of this library."""


class ConfigError(PyallreduceError, ValueError):
    """A setting that is unknown or out of range; the message lists what is accepted."""


class WireError(PyallreduceError, ValueError):
    """A frame of the start-up exchange that cannot be accepted; `field` names the part at fault."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class InvalidCall(PyallreduceError, ValueError):
    """Arguments that no backend takes; the message says what was passed and what is accepted."""


class CommunicatorClosed(PyallreduceError):
    """A call on a communicator after `close()`."""


class NotAMember(PyallreduceError, ValueError):
    """This process is not a member of the process group it was asked to communicate in."""


class BackendUnavailable(PyallreduceError):
    """The native backend was demanded and cannot be had; `reason` says why and what mends it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class SlabMemoryError(BackendUnavailable):
    """The memory that this rank would share could not be allocated."""


class ExchangeTimeout(PyallreduceError):
    """A rank did not come to a step of the start-up or of `recover()`, or was lost in it; the
    process group is unusable now, unless the message says that all may try again. `rank` waited for
    `peer`; -1 means unknown."""

    def __init__(self, message: str, *, rank: int = -1, peer: int = -1) -> None:
        super().__init__(message)
        self.rank = rank
        self.peer = peer

    def copy(self) -> ExchangeTimeout:
        """The same, to be raised by who keeps this one: one that was raised keeps its callers."""
        return ExchangeTimeout(str(self), rank=self.rank, peer=self.peer)


class AllReduceAborted(PyallreduceError):
    """A call ended before its data had arrived: its output is not valid.

    Attributes: `rank` waited for `peer` in call number `call` of `nbytes` bytes by `algorithm`,
    in `phase`. A number of -1 and an empty text mean unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        rank: int = -1,
        peer: int = -1,
        call: int = -1,
        algorithm: str = "",
        nbytes: int = -1,
        phase: str = "",
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.peer = peer
        self.call = call
        self.algorithm = algorithm
        self.nbytes = nbytes
        self.phase = phase


class CallMismatch(AllReduceAborted):
    """Two ranks made different calls: `ours` and `theirs` are the two signatures as text."""

    def __init__(
        self,
        message: str,
        *,
        ours: str = "",
        theirs: str = "",
        rank: int = -1,
        peer: int = -1,
        call: int = -1,
        algorithm: str = "",
        nbytes: int = -1,
        phase: str = "",
    ) -> None:
        super().__init__(
            message,
            rank=rank,
            peer=peer,
            call=call,
            algorithm=algorithm,
            nbytes=nbytes,
            phase=phase,
        )
        self.ours = ours
        self.theirs = theirs


class CallRefused(PyallreduceError):
    """Rank `rank` refused call number `call` because of `why`; no rank ran it."""

    def __init__(self, message: str, *, rank: int = -1, call: int = -1, why: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        self.call = call
        self.why = why
