"""What a comparison of methods holds equal, and the settings that ``--tune`` tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layerweld.merging.method import Method
from layerweld.merging.registry import METHODS
from layerweld.settings.methods import methods_of, setting_named
from layerweld.settings.run import RunSettings, Scalar, read_run_settings

_MEASURES_ONLY = ("merge.influence", "merge.covariate-shift")
_VALIDATION_SHARE = 0.2  # of a site's samples, set aside to choose settings on


@dataclass(frozen=True)
class ComparisonSettings:
    """What every method of a comparison gets alike.

    Attributes:
        run: settings; ``methods`` says what is compared.
        seeds: each replaces ``calibration.seed`` and every method's own seed.
        budget: candidates per method. With more than 1 each site sets a fifth of its samples
            aside, and trains and calibrates on the others. The candidate with the best mean
            normalised accuracy on that fifth is taken. Held-out samples choose nothing.
    """

    run: RunSettings
    seeds: Sequence[int]
    budget: int = 1

    def with_seed(self, seed: int) -> RunSettings:
        """One seed everywhere, and samples set aside if something is chosen."""
        flat = dict(self.run.flat())
        flat |= {key: seed for key in flat if key.endswith(".seed")}
        if self.budget > 1:
            flat["calibration.validation"] = _VALIDATION_SHARE
        return read_run_settings(flat)

    def differences(self) -> dict[str, Scalar]:
        """The settings that change a merge and differ from their defaults."""
        tables = {"lines"}.union(*(method.tables for method in methods_of(self.run)))
        defaults = RunSettings().flat()
        return {
            key: value
            for key, value in self.run.flat().items()
            if key.partition(".")[0] in tables
            and key not in _MEASURES_ONLY
            and value != defaults[key]
        }


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
