"""One plain sentence about a run, computed from its numbers, whoever they favour."""

from __future__ import annotations

from math import sqrt

from layerweld.report.results import RunResults
from layerweld.report.scores import REFERENCES, Summary, compared_sites, method_named, summaries
from layerweld.report.wording import percent

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
          "eleven", "twelve")  # fmt: skip


def count(number: int, noun: str) -> str:
    """``six sites``, ``one site``, ``24 sites``."""
    word = _WORDS[number] if number < len(_WORDS) else f"{number:,}"
    return f"{word} {noun}" if number == 1 else f"{word} {noun}s"


def verdict(results: RunResults) -> str:
    """How much of individual fine-tuning the chosen merge keeps, and whether another keeps more."""
    found = summaries(results)
    label = _label(results, results.chosen)
    sites = compared_sites(results)
    if results.chosen not in found:
        return f"How well {label} works was not measured: the run has no held-out accuracy for it."
    chosen = found[results.chosen]
    figure = percent(chosen.figure)
    if chosen.mean_normalised is None:
        opening = f"{label} reaches an accuracy of {figure} on average over"
    else:
        opening = f"{label} keeps {figure} of individual fine-tuning on average over"
    opening = f"{opening} {count(len(sites), 'site')}"
    return f"{opening}; {_rank(results, found)}{_against_base(found, results.chosen)}"


def caveat(results: RunResults) -> str:
    """Whether the gap to the nearest merge is larger than the sampling error; empty if none."""
    found = summaries(results)
    others = _other_merges(found, results.chosen)
    if results.chosen not in found or not others:
        return ""
    chosen = found[results.chosen]
    nearest = min(others, key=lambda name: abs(found[name].figure - chosen.figure))
    gap = abs(found[nearest].figure - chosen.figure)
    error = sqrt(found[nearest].half_width ** 2 + chosen.half_width**2)
    than = "smaller" if gap < error else "larger"
    return (
        f"The gap to the nearest other merge ({_label(results, nearest)}) is"
        f" {100 * gap:.1f} points, {than} than the sampling error of"
        f" ±\u00a0{100 * error:.1f} points (95 %, taking the two as independent)."
    )


def _rank(results: RunResults, found: dict[str, Summary]) -> str:
    others = _other_merges(found, results.chosen)
    if results.chosen in REFERENCES:
        return "it is a reference and not a merge."
    if not others:
        return "no other merge was compared."
    best = max(others, key=lambda name: found[name].figure)
    lead = found[results.chosen].figure - found[best].figure
    label, figure = _label(results, best), percent(found[best].figure)
    if abs(lead) < 1e-9:
        return f"{label} does exactly as well."
    if lead < 0:
        return f"{label} is better here, with {figure}."
    return (
        f"it is the best of the {count(len(others) + 1, 'merge')}; {label} follows with {figure}."
    )


def _against_base(found: dict[str, Summary], chosen: str) -> str:
    if "base" not in found or chosen == "base" or found["base"].figure < found[chosen].figure:
        return ""
    return f" The base model alone does no worse: {percent(found['base'].figure)}."


def _other_merges(found: dict[str, Summary], chosen: str) -> list[str]:
    return [name for name in found if name != chosen and name not in REFERENCES]


def _label(results: RunResults, name: str) -> str:
    method = method_named(results, name)
    return method.label if method else name
