"""Which columns of a source are read, and which it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any

Record = dict[str, Any]
"""A sample's values in the wanted columns that it has."""

_MOST_NAMES = 1000  # kept for a message; a source may claim millions


class Columns:
    """The two columns that are wanted, and the names of those that were met.

    Args:
        text: name of the column that holds the text.
        label: name of the column that holds the label, if there are labels.
    """

    def __init__(self, text: str, label: str) -> None:
        self.text = text
        self.label = label
        self.met: dict[str, None] = {}

    @property
    def wanted(self) -> tuple[str, ...]:
        """Text and label column; only once if they are the same."""
        return tuple(dict.fromkeys((self.text, self.label)))

    def meet(self, names: Collection[str]) -> None:
        """Note the columns that a sample, or a source, has."""
        self.met |= dict.fromkeys(name for name in self.wanted if name in names)
        if len(self.met) < _MOST_NAMES:
            self.met |= dict.fromkeys(islice(names, _MOST_NAMES - len(self.met)))

    def of(self, row: Mapping[str, Any]) -> Record:
        """A sample's values in the wanted columns."""
        self.meet(row.keys())
        return {name: row[name] for name in self.wanted if name in row}
