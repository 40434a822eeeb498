"""What a comparison of methods found out, as values; tables and report are made of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from layerweld.report.results import MethodResult, SiteSummary
from layerweld.settings.run import Scalar


@dataclass(frozen=True)
class Entry:
    """One method at one seed."""

    seed: int
    result: MethodResult
    peak_bytes: int | None = None
    """Of the process with server and sites, while the method merged; None for references."""
    tuned: Mapping[str, Scalar] = field(default_factory=dict)
    """What differs from the published default."""


@dataclass(frozen=True)
class Refusal:
    """A method that cannot work on these sites' models, and why."""

    name: str
    label: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Everything a comparison found out."""

    name: str
    base: str
    """Name of the base model's folder."""
    sites: tuple[SiteSummary, ...]
    seeds: tuple[int, ...]
    budget: int
    """Candidates tried per method and seed; 1 is the published default alone."""
    entries: tuple[Entry, ...]
    """By seed, references first, then in the order of the methods."""
    refused: tuple[Refusal, ...]
    given: Mapping[str, Scalar] = field(default_factory=dict)
    """Settings of the methods in which the run differs from the published defaults."""
