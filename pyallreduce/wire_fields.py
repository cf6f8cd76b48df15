# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Checked fields of binary records: each packs one value, and refuses by name what is not its own.

`Layout` strings fields together, little-endian and unpadded. A value has exactly one encoding.
Both ways raise `WireError` and nothing else.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from pyallreduce.errors import WireError

__all__ = ["Choice", "Constant", "Field", "Flag", "Integer", "Layout", "Raw", "Text"]


class Field(ABC):
    """A named place of a record, with the `struct` format of its encoded value."""

    def __init__(self, name: str, code: str) -> None:
        self.name = name
        self.code = code

    @abstractmethod
    def pack(self, value: Any) -> Any:
        """The value as `struct` takes it."""

    @abstractmethod
    def unpack(self, raw: Any) -> Any:
        """The value from what `struct` gave."""

    def refuse(self, value: object, expected: str) -> WireError:
        return WireError(f"{value!r:.80}, expected {expected}", field=self.name)


class Constant(Field):
    """A value that every frame has, such as the magic."""

    def __init__(self, name: str, code: str, value: object) -> None:
        super().__init__(name, code)
        self.value = value

    def pack(self, value: Any) -> Any:
        return self.unpack(value)

    def unpack(self, raw: Any) -> Any:
        if raw != self.value:
            raise self.refuse(raw, repr(self.value))
        return raw


class Integer(Field):
    """An integer from `low` to `high`."""

    def __init__(self, name: str, code: str, low: int, high: int) -> None:
        super().__init__(name, code)
        self.low, self.high = low, high

    def pack(self, value: Any) -> Any:
        if not isinstance(value, int):
            raise self.refuse(value, "an integer")
        return self.unpack(int(value))

    def unpack(self, raw: Any) -> Any:
        if not self.low <= raw <= self.high:
            raise self.refuse(raw, f"{self.low} to {self.high}")
        return raw


class Choice(Field):
    """One of a fixed sequence, as its place in it."""

    def __init__(self, name: str, code: str, choices: Sequence[object]) -> None:
        super().__init__(name, code)
        self.choices = tuple(choices)

    def pack(self, value: Any) -> Any:
        if value not in self.choices:
            raise self.refuse(value, f"one of {', '.join(map(str, self.choices))}")
        return self.choices.index(value)

    def unpack(self, raw: Any) -> Any:
        if raw >= len(self.choices):
            raise self.refuse(raw, f"0 to {len(self.choices) - 1}")
        return self.choices[raw]


class Flag(Choice):
    """A bool, as 0 or 1."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "B", (False, True))


class Raw(Field):
    """Exactly `size` bytes."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name, f"{size}s")
        self.size = size

    def pack(self, value: Any) -> Any:
        if not isinstance(value, bytes) or len(value) != self.size:
            raise self.refuse(value, f"{self.size} bytes")
        return value

    def unpack(self, raw: Any) -> Any:
        return raw


class Text(Field):
    """UTF-8 of at most `size` bytes with no control characters, filled up with zeros.

    With `cut`, what is too long is cut at a character and what cannot be carried is replaced: for
    words meant to be read. Without, it is refused: half an identity is another identity.
    """

    def __init__(self, name: str, size: int, *, cut: bool = False) -> None:
        super().__init__(name, f"{size}s")
        self.size = size
        self.cut = cut

    def pack(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise self.refuse(value, "text")
        if self.cut:
            value = "".join(" " if _is_control(letter) else letter for letter in value)
            raw = value.encode("utf-8", "replace")[: self.size]
            return raw.decode("utf-8", "ignore").encode()
        raw = value.encode("utf-8", "replace")
        if len(raw) > self.size or self.unpack(raw) != value:
            raise self.refuse(value, f"at most {self.size} bytes of UTF-8")
        return raw

    def unpack(self, raw: Any) -> Any:
        try:
            text: str = raw.rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(raw, "UTF-8") from None
        if any(map(_is_control, text)):
            raise self.refuse(text, "no control characters")
        return text


class Layout:
    """A record of named fields, one after the other."""

    def __init__(self, *fields: Field) -> None:
        self._fields = fields
        self._struct = struct.Struct("<" + "".join(field.code for field in fields))
        self.size = self._struct.size

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """The bytes of `values`, which has every field's name; others in it are left out."""
        return self._struct.pack(*(field.pack(values[field.name]) for field in self._fields))

    def unpack(self, raw: bytes) -> dict[str, Any]:
        """The values by name, from exactly `size` bytes."""
        parts = self._struct.unpack(raw)
        return {f.name: f.unpack(part) for f, part in zip(self._fields, parts, strict=True)}


def _is_control(letter: str) -> bool:
    return letter < " " or "\x7f" <= letter < "\xa0"
