"""What `layerweld compare --tune` tries: the settings that each method declares, one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from layerweld.merging.method import Method
from layerweld.merging.registry import METHODS
from layerweld.settings.methods import setting_named
from layerweld.settings.run import RunSettings, Scalar, read_run_settings

Candidate = Mapping[str, Scalar]


def candidates(method: Method, budget: int) -> Sequence[Candidate]:
    """At most ``budget`` candidates of one method, the published default first."""
    changed = [{key: value} for key, values in method.tune.items() for value in values]
    return ({}, *changed)[:budget]


def with_candidate(settings: RunSettings, number: int) -> RunSettings:
    """Every table with its candidate of that number; tables with fewer are left as they are."""
    flat = settings.flat()
    for method in METHODS.values():
        for candidate in candidates(method, number + 1)[number:]:
            flat |= {setting_named(k, method, settings): v for k, v in candidate.items()}
    return read_run_settings(flat)
