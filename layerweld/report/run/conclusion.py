"""One plain sentence about a run, computed from its numbers, whoever they favour."""

from __future__ import annotations

from math import sqrt

from layerweld.report.results import RunResults
from layerweld.report.scores import REFERENCES, Summary, compared_sites, summaries
from layerweld.report.wording import percent

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
          "eleven", "twelve")  # fmt: skip


def count(number: int, noun: str) -> str:
    """``six sites``, ``one site``, ``24 sites``."""
    word = _WORDS[number] if number < len(_WORDS) else f"{number:,}"
    return f"{word} {noun}" if number == 1 else f"{word} {noun}s"


def conclude_run(results: RunResults) -> str:
    """How much of individual fine-tuning the chosen merge keeps, and whether another keeps more."""
    by_method = summaries(results)
    label = _label(results, results.chosen)
    sites = compared_sites(results)
    if results.chosen not in by_method:
        return f"How well {label} works was not measured: the run has no held-out accuracy for it."
    chosen = by_method[results.chosen]
    score = percent(chosen.score)
    if chosen.mean_normalised is None:
        opening = f"{label} reaches an accuracy of {score} on average over"
    else:
        opening = f"{label} keeps {score} of individual fine-tuning on average over"
    opening = f"{opening} {count(len(sites), 'site')}"
    return f"{opening}; {_rank(results, by_method)}{_against_base(by_method, results.chosen)}"


def sampling_caveat(results: RunResults) -> str:
    """Whether the gap to the nearest merge is larger than the sampling error; empty if none."""
    by_method = summaries(results)
    others = _other_merges(by_method, results.chosen)
    if results.chosen not in by_method or not others:
        return ""
    chosen = by_method[results.chosen]
    nearest = min(others, key=lambda name: abs(by_method[name].score - chosen.score))
    gap = abs(by_method[nearest].score - chosen.score)
    error = sqrt(by_method[nearest].half_width ** 2 + chosen.half_width**2)
    than = "smaller" if gap < error else "larger"
    return (
        f"The gap to the nearest other merge ({_label(results, nearest)}) is"
        f" {100 * gap:.1f} points, {than} than the sampling error of"
        f" ±\u00a0{100 * error:.1f} points (95 %, taking the two as independent)."
    )


def _rank(results: RunResults, by_method: dict[str, Summary]) -> str:
    others = _other_merges(by_method, results.chosen)
    if results.chosen in REFERENCES:
        return "it is a reference and not a merge."
    if not others:
        return "no other merge was compared."
    best = max(others, key=lambda name: by_method[name].score)
    lead = by_method[results.chosen].score - by_method[best].score
    label, score = _label(results, best), percent(by_method[best].score)
    if abs(lead) < 1e-9:
        return f"{label} does exactly as well."
    if lead < 0:
        return f"{label} is better here, with {score}."
    return f"it is the best of the {count(len(others) + 1, 'merge')}; {label} follows with {score}."


def _against_base(by_method: dict[str, Summary], chosen: str) -> str:
    if (
        "base" not in by_method
        or chosen == "base"
        or by_method["base"].score < by_method[chosen].score
    ):
        return ""
    return f" The base model alone does no worse: {percent(by_method['base'].score)}."


def _other_merges(by_method: dict[str, Summary], chosen: str) -> list[str]:
    return [name for name in by_method if name != chosen and name not in REFERENCES]


def _label(results: RunResults, name: str) -> str:
    method = results.method(name)
    return method.label if method else name
