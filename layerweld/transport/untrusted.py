"""Typed values out of records that are not trusted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from layerweld.errors import LayerweldError, RefusedReplyError
from layerweld.out_of_memory import raising_memory_shortage
from layerweld.untrusted.text import quoted, shown

T = TypeVar("T")


@contextmanager
def refusing_malformed() -> Iterator[None]:
    """Whatever goes wrong while something that arrived is read is a refusal of it.

    Everything is caught, because what a sender can make a library raise is no list that ends. The
    sizes are compared with the bytes that are there before memory is taken, so running out of it
    is this process's own lack.

    Raises:
        RefusedReplyError: as said.
        MemoryShortageError: this process has no memory left, which says nothing of the reply.
    """
    try:
        with raising_memory_shortage():
            yield
    except LayerweldError:
        raise
    except Exception as error:
        raise RefusedReplyError(f"a reply that cannot be read: {shown(error)}") from error


def read(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """One typed value of a record that came over the network."""
    value = record[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"record entry {key!r} should be a {kind.__name__}, not {quoted(value)}")
    return value


def packed(value: object, names: Iterable[str]) -> dict[str, Any]:
    """Fields of a value as entries of a record, where tuples are lists."""
    entries = {name: getattr(value, name) for name in names}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in entries.items()}


def unpacked(record: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Inverse of :func:`packed`, of entries that a layout has checked."""
    entries = {name: record[name] for name in names}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in entries.items()}


def read_list(record: Mapping[str, Any], key: str, kind: type[T]) -> Sequence[T]:
    """One typed list of a record that came over the network."""
    values: Any = record[key]
    if not isinstance(values, list) or not all(
        isinstance(v, kind) and not (kind is int and isinstance(v, bool)) for v in values
    ):
        raise TypeError(f"record entry {key!r} should be a list of {kind.__name__}")
    return values
