"""What the report says about sites that a run lost: who, when, why, and which groups lack them."""

from __future__ import annotations

from collections.abc import Sequence

from layerweld.report.page.render import Table
from layerweld.report.results import MethodResult, RunResults
from layerweld.report.wording import group_label


def lost_sites_text(results: RunResults) -> str:
    """What happened and what it means, in two sentences."""
    policy = results.settings.get("lost-site", "continue")
    one = len(results.lost) == 1
    who = "A site" if one else f"{len(results.lost)} sites"
    return (
        f"{who} failed on the way, and the run went on, since lost-site = {policy}. What was "
        f"merged from then on knows nothing of {'its task' if one else 'their tasks'}."
    )


def lost_sites_table(results: RunResults) -> Table:
    """A row per site and merge that lacks it; a site lost after all merges has one row, too."""
    rows: list[tuple[str, ...]] = []
    for site, why in results.lost.items():
        lacking = [method for method in results.methods if site in method.lost]
        for method in lacking:
            since = str(method.lost[site])
            rows.append((site, method.label, since, _groups_without(method, site), why))
        if not lacking:
            rows.append((site, "none", "–", "none: lost after the merges were made", why))
    return Table(
        head=("Site", "Merge", "Missing since round", "Groups without it", "Why"),
        rows=rows,
        words=("Merge", "Groups without it", "Why"),
    )


def _groups_without(method: MethodResult, site: str) -> str:
    if not method.groups:
        return "all: merged in one round"
    without: Sequence[str] = [group_label(g) for g in method.groups if site in g.lost]
    if not without:
        return "none"
    without = [label.replace(" ", "\u00a0") for label in without]  # a label stays on one line
    count = f"{len(without)} of {len(method.groups)}"
    return f"{count}: {without[0]}" + (f" to {without[-1]}" if len(without) > 1 else "")
