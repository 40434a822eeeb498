"""All that one message may hold: its records, their entries, and how large each may be.

A message is compared with its layout before anything of it is read, and the layout's
:class:`Budget` before it is even put together. What is not in the layout is refused, so a sender
has no place for anything that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, replace
from math import isfinite

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from layerweld.transport.arrays import Shapes, bytes_of, check_arrays, from_arrays, read_arrays
from layerweld.untrusted.text import quoted

_AROUND = 512  # bytes that Flower and protobuf put around one array, record or entry, at most
_CHUNK = 2**18  # bytes: Flower cuts arrays into pieces of 5 MiB, a site's setting may be smaller


@dataclass(frozen=True)
class Budget:
    """What one message may take before anybody has looked into it.

    Attributes:
        num_bytes: of everything that must be pulled to put it together.
        objects: Flower's objects: the message, its records, arrays, and pieces of arrays.
    """

    num_bytes: int
    objects: int


_LEAST = Budget(2**16, 64)
"""No message gets less, so that a small one about something else is still told from a lie."""


@dataclass(frozen=True)
class Text:
    """A string of at most this many characters, none of which moves a cursor or ends a line."""

    longest: int = 200

    def check(self, value: object) -> None:
        """Refuse anything else, by ``ValueError``."""
        if not isinstance(value, str) or len(value) > self.longest:
            raise ValueError(f"should be a text of at most {self.longest} characters")
        if not value.isprintable():
            raise ValueError("should be a text of printable characters")

    @property
    def num_bytes(self) -> int:
        """The most that it takes: UTF-8 has up to four bytes a character."""
        return 4 * self.longest + 8


@dataclass(frozen=True)
class Whole:
    """An integer between two others, both included."""

    low: int = 0
    high: int = 2**53

    def check(self, value: object) -> None:
        """Refuse anything else, by ``ValueError``."""
        if type(value) is not int or not self.low <= value <= self.high:
            raise ValueError(f"should be a whole number from {self.low} to {self.high}")

    num_bytes = 16


@dataclass(frozen=True)
class Real:
    """A finite float between two others, both included."""

    low: float = float("-inf")
    high: float = float("inf")

    def check(self, value: object) -> None:
        """Refuse anything else, by ``ValueError``."""
        if type(value) is not float or not isfinite(value):
            raise ValueError("should be a finite number")
        if not self.low <= value <= self.high:
            raise ValueError(f"should be a number from {self.low:g} to {self.high:g}")

    num_bytes = 16


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def check(self, value: object) -> None:
        """Refuse anything else, by ``ValueError``."""
        if type(value) is not bool:
            raise ValueError("should be true or false")

    num_bytes = 8


@dataclass(frozen=True)
class Many:
    """A list of at most so many of one kind."""

    of: Text | Whole | Real
    most: int

    def check(self, value: object) -> None:
        """Refuse anything else, by ``ValueError``."""
        if not isinstance(value, list) or len(value) > self.most:
            raise ValueError(f"should be a list of at most {self.most}")
        for one in value:
            self.of.check(one)

    @property
    def num_bytes(self) -> int:
        """The most that it takes."""
        return self.most * (self.of.num_bytes + 8)


Entries = Mapping[str, Text | Whole | Real | Flag | Many]


@dataclass(frozen=True)
class Layout:
    """The records of one message, by name.

    Attributes:
        entries: of each config record: every key that it must have, and no other.
        arrays: of each array record, the shapes of what it must hold and nothing else; None where
            ranks are not known beforehand, and whoever decodes compares them with the plan.
    """

    entries: Mapping[str, Entries] = field(default_factory=dict)
    arrays: Mapping[str, Shapes | None] = field(default_factory=dict)

    def check(self, content: RecordDict) -> None:
        """Refuse whatever is not laid out like this, before anything is decoded.

        Raises:
            ValueError: what is wrong, and where.
            TypeError: a record is of another kind.
        """
        _same_keys("record", content, {**self.entries, **self.arrays})
        for name, entries in self.entries.items():
            check_record(name, content[name], entries)
        for name, shapes in self.arrays.items():
            record = content[name]
            if not isinstance(record, ArrayRecord):
                raise TypeError(f"record {name!r} is a {type(record).__name__} and no arrays")
            if shapes is not None:
                check_arrays(record, shapes)

    def read(self, content: RecordDict) -> dict[str, dict[str, Tensor]]:
        """The tensors of each array record, once :meth:`check` has passed all of them."""
        self.check(content)
        return {
            name: from_arrays(content.array_records[name])
            if shapes is None
            else read_arrays(content.array_records[name], shapes)
            for name, shapes in self.arrays.items()
        }

    @property
    def without_arrays(self) -> Layout:
        """The same message with nothing in its array records."""
        return replace(self, arrays={name: {} for name in self.arrays})

    @property
    def num_bytes(self) -> int:
        """What its arrays take on the wire, without any header."""
        return sum(bytes_of(shapes or {}) for shapes in self.arrays.values())

    @property
    def budget(self) -> Budget:
        """The most that a message of this layout takes, however the sender cuts its arrays."""
        words = sum(
            len(key) + kind.num_bytes + _AROUND
            for entries in self.entries.values()
            for key, kind in entries.items()
        )
        arrays = [{name: shape} for s in self.arrays.values() for name, shape in (s or {}).items()]
        sizes = [bytes_of(array) for array in arrays]
        names = sum(len(name) for array in arrays for name in array)
        pieces = sum(1 + size // _CHUNK for size in sizes)
        objects = 2 + len(self.entries) + len(self.arrays) + len(sizes) + pieces
        num_bytes = sum(sizes) + words + 6 * names + _AROUND * objects
        return Budget(max(num_bytes, _LEAST.num_bytes), max(objects, _LEAST.objects))


def check_record(name: str, record: object, entries: Entries) -> None:
    """Refuse a record that has not exactly these entries.

    Raises:
        ValueError: an entry is missing, unexpected, or not what it should be.
        TypeError: it is a record of another kind.
    """
    if not isinstance(record, ConfigRecord):
        raise TypeError(f"record {name!r} is a {type(record).__name__}, not a ConfigRecord")
    _same_keys(f"entry of {name!r}", record, entries)
    for key, wanted in entries.items():
        try:
            wanted.check(record[key])
        except ValueError as error:
            raise ValueError(f"{key!r} {error}, not {_said(record[key])}") from None


def _same_keys(what: str, present: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    if present.keys() == wanted.keys():
        return
    missing = sorted(wanted.keys() - present.keys())
    if missing:
        raise ValueError(f"{what} {missing[0]!r} is missing")
    surplus = next(key for key in present if key not in wanted)
    raise ValueError(f"{what} {quoted(surplus)} is unexpected")


def _said(value: object) -> str:
    if isinstance(value, Sized) and (len(value) > 40 or isinstance(value, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return quoted(value)
