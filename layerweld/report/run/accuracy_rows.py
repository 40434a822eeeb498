"""The report's accuracy table as texts: what stands in which cell, and which cells are bold."""

from __future__ import annotations

from typing import Any

from layerweld.report.page.palette import method_style
from layerweld.report.results import RunResults
from layerweld.report.scores import (
    best_at,
    best_merges,
    compared_sites,
    evaluated,
    half_width,
    normalised,
    scored_sites,
    summaries,
)
from layerweld.report.wording import percent


def accuracy_rows(results: RunResults) -> dict[str, Any] | None:
    """Columns, rows and footnote of the table; None when nothing was evaluated."""
    methods = evaluated(results)
    sites = scored_sites(results)
    if not sites:
        return None
    names = [m.name for m in results.methods]
    columns = [
        {
            "label": m.label,
            "colour": method_style(m.name, names)[0],
            "tag": "written out" if m.name == results.chosen else "",
        }
        for m in methods
    ]
    left_out = [s for s in sites if s not in compared_sites(results)]
    return {
        "columns": columns,
        "rows": [*(_site_row(results, site) for site in sites), *_total_rows(results)],
        "normalised": any(s.mean_normalised is not None for s in summaries(results).values()),
        "left_out": ", ".join(left_out),
    }


def _site_row(results: RunResults, site: str) -> dict[str, Any]:
    methods = evaluated(results)
    best = best_at(results, site)
    scores = [m.scores[site] for m in methods if site in m.scores]
    cells = [
        _cell(
            m.scores[site].accuracy if site in m.scores else None,
            normalised(results, m, site),
            m.name in best,
        )
        for m in methods
    ]
    return {
        "name": site,
        "total": False,
        "cells": cells,
        "samples": f"{max(s.samples for s in scores):,}",
        "error": f"{100 * max(half_width(s) for s in scores):.1f}",
    }


def _total_rows(results: RunResults) -> list[dict[str, Any]]:
    by_method = summaries(results)
    if not by_method:
        return []
    best = best_merges({name: s.score for name, s in by_method.items()})
    shown = [by_method.get(m.name) for m in evaluated(results)]
    names = [m.name for m in evaluated(results)]
    mean = [
        _cell(s.mean if s else None, s.mean_normalised if s else None, name in best)
        for name, s in zip(names, shown, strict=True)
    ]
    rows = [{"name": "Mean", "cells": mean}]
    worst = {name: s.worst[1] for name, s in by_method.items() if s.worst}
    if worst:
        firm = best_merges(worst)
        cells = [
            {
                "absolute": percent(worst.get(name)),
                "normalised": s.worst[0] if s and s.worst else "",
                "best": name in firm,
            }
            for name, s in zip(names, shown, strict=True)
        ]
        rows.append({"name": "Worst site, normalised", "cells": cells})
    return [row | {"total": True, "samples": "", "error": ""} for row in rows]


def _cell(absolute: float | None, share: float | None, best: bool) -> dict[str, Any]:
    below = "" if share is None else percent(share)
    return {"absolute": percent(absolute), "normalised": below, "best": best}
