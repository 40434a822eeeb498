"""A chart of a page: a Plotly figure in plain values, with the sentence that explains it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Trace = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One figure and the sentence that says how to read it."""

    key: str
    """Unique in the page."""
    title: str
    reading: str
    height: int
    """Pixels."""
    data: list[Trace]
    layout: dict[str, Any]
    narrow: dict[str, Any] = field(default_factory=dict)
    """What of the layout differs on a phone; keys are dotted paths."""
