"""A comparison in two sentences: which method, by how much, and whether that could be chance."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from layerweld.report.comparison.spreads import MethodOverSeeds
from layerweld.report.scores import REFERENCES
from layerweld.report.wording import percent


def conclude_comparison(methods: Sequence[MethodOverSeeds]) -> str:
    """Which method serves the sites best, and how sure that is."""
    merges = [method for method in methods if method.name not in REFERENCES]
    if not merges:
        return "None of the methods can work on these sites' models."
    best, *others = sorted(merges, key=lambda method: -method.normalised.mean)
    sentence = (
        f"{best.label} ({best.name}) keeps {percent(best.normalised.mean)} of what the sites reach "
        f"alone, and {percent(best.worst.mean)} at the worst of them."
    )
    if not others:
        return sentence
    second = others[0]
    lead = best.normalised.mean - second.normalised.mean
    error = sqrt(best.half_width**2 + second.half_width**2)
    than = "less" if lead < error else "more"
    return (
        f"{sentence} It leads {second.label} ({second.name}) by {100 * lead:.1f} points, {than} "
        f"than the sampling error of ±\u00a0{100 * error:.1f} (95 %, taking the two as independent)"
        f"{_by_seed(best, second)}"
    )


def _by_seed(best: MethodOverSeeds, second: MethodOverSeeds) -> str:
    """At how many seeds it leads, about which the sampling error says nothing."""
    pairs = list(zip(best.normalised.values, second.normalised.values, strict=False))
    if len(pairs) == 1:
        return "; one seed says nothing about training."
    ahead = sum(one > other for one, other in pairs)
    return f", and is ahead at {ahead} of {len(pairs)} seeds."
