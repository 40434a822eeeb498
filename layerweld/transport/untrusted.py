"""Typed values out of what nobody vouches for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from layerweld.errors import RefusedReplyError
from layerweld.memory import naming_memory

T = TypeVar("T")


@contextmanager
def refusing_malformed() -> Iterator[None]:
    """Whatever cannot be read as what it should be is a refused reply.

    Raises:
        RefusedReplyError: as said.
        MemoryShortageError: this process has no memory left, which says nothing of the reply.
    """
    try:
        with naming_memory():
            yield
    except (KeyError, ValueError, TypeError, EOFError, RuntimeError, OverflowError) as error:
        raise RefusedReplyError(f"a reply that cannot be read: {error}") from error


def read(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """One typed value of a record that came over the network."""
    value = record[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"record entry {key!r} should be a {kind.__name__}, not {value!r}")
    return value


def read_list(record: Mapping[str, Any], key: str, kind: type[T]) -> Sequence[T]:
    """One typed list of a record that came over the network."""
    values: Any = record[key]
    if not isinstance(values, list) or not all(isinstance(v, kind) for v in values):
        raise TypeError(f"record entry {key!r} should be a list of {kind.__name__}")
    return values
