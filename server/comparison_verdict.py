"""A comparison in two sentences: which method, by how much, and whether that could be chance."""

from __future__ import annotations

from collections.abc import Sequence

from server.comparison_scores import Line
from server.report_labels import percent
from server.scores import REFERENCES


def verdict(found: Sequence[Line]) -> str:
    """Which method serves the sites best, and how sure that is."""
    merges = [line for line in found if line.name not in REFERENCES]
    if not merges:
        return "None of the methods can work on these sites' models."
    best, *others = sorted(merges, key=lambda line: -line.normalised.mean)
    sentence = (
        f"{best.label} ({best.name}) keeps {percent(best.normalised.mean)} of what the sites reach "
        f"alone, and {percent(best.worst.mean)} at the worst of them."
    )
    if not others:
        return sentence
    lead = best.normalised.mean - others[0].normalised.mean
    deviation = max(best.normalised.deviation or 0.0, others[0].normalised.deviation or 0.0)
    if best.normalised.deviation is None:
        return f"{sentence} {_lead(lead, others[0])}; one seed says nothing about chance."
    sure = "more" if lead > deviation else "not more"
    return f"{sentence} {_lead(lead, others[0])}, {sure} than seeds differ."


def _lead(lead: float, second: Line) -> str:
    return f"It leads {second.label} ({second.name}) by {100 * lead:.1f} points"
