"""The report's maps of sites by layer groups: importance, influence, and who is in which group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log2
from typing import Any

from layerweld.report.page.axes import group_axis, ratio_bar, row_axis, value_bar
from layerweld.report.page.render import Chart, Trace
from layerweld.report.results import GroupMetrics, MethodResult, RunResults
from layerweld.report.wording import chart_text, full_name, number_text
from layerweld.statistics.influence import OPPOSITE

_Cell = tuple[float | None, str]
"""A value, None where the site has none, and how the hover says it."""


def importance_map(results: RunResults, method: MethodResult) -> Chart | None:
    """ω relative to the mean over the sites of its group, sites by groups; None if all are one."""
    sites = [s.name for s in results.sites if any(s.name in g.importance for g in method.groups)]
    cells = [[_importance(group, site) for group in method.groups] for site in sites]
    logs = [abs(value) for line in cells for value, _ in line if value is not None]
    if not any(logs):
        return None
    end = max([*logs, log2(1.25)])
    return _site_map(
        method, sites, cells, "importance", "Importance ω of each site",
        "ω relative to the mean over the sites of the same group, since only ratios matter: at × 2 "
        "a site counts twice as much as the average site in that group.",
        zmin=-end, zmax=end, colorbar=ratio_bar(end),
        colorscale=[[0, "--low"], [0.5, "--middle"], [1, "--high"]],
    )  # fmt: skip


def influence_map(results: RunResults, method: MethodResult) -> Chart | None:
    """How far each site moves each group, sites by groups; None where nobody asked."""
    sites = [s.name for s in results.sites if any(s.name in g.influence for g in method.groups)]
    if not sites:
        return None
    top = max(value for group in method.groups for value in group.influence.values())
    drawn = _site_map(
        method, sites, [[_influence(group, site) for group in method.groups] for site in sites],
        "influence", "Influence of each site",
        "How far the merge of the other sites moves when the site joins them, relative and on the "
        f"sites' inputs. {_flagged(method)}{_opposed(method)}",
        zmin=0, zmax=top, colorscale=[[0, "--middle"], [1, "--high"]],
        colorbar=value_bar(top),
    )  # fmt: skip
    return replace(drawn, data=[*drawn.data, _rings(method, sites)])


def cohort_map(results: RunResults, method: MethodResult) -> Chart | None:
    """Who is in which group, sites by groups; None where all are in all of them."""
    if not method.lost or not method.groups:
        return None
    sites = [site.name for site in results.sites]
    return _site_map(
        method, sites, [[_presence(group, site) for group in method.groups] for site in sites],
        "cohort", f"Who is in which group: {method.label}",
        "Blue where the site's statistics are in the group's sum, grey where the group was merged "
        "without it.",
        zmin=0, zmax=1, showscale=False, colorscale=[[0, "--line"], [1, "--low"]],
    )  # fmt: skip


def _site_map(
    method: MethodResult,
    sites: Sequence[str],
    cells: Sequence[Sequence[_Cell]],
    key: str,
    title: str,
    reading: str,
    **trace: Any,
) -> Chart:
    """A heat map with a row per site and a column per group; ``trace`` is Plotly's."""
    hover = [
        [
            f"{full_name(group)}<br>{chart_text(site, 60)}: {words}"
            for group, (_, words) in zip(method.groups, line, strict=True)
        ]
        for site, line in zip(sites, cells, strict=True)
    ]
    drawn = {
        "type": "heatmap", "z": [[value for value, _ in line] for line in cells],
        "text": hover, "hovertemplate": "%{text}<extra></extra>",
        "xgap": 2 if len(method.groups) <= 60 else 0, "ygap": 2,
    }  # fmt: skip
    horizontal, narrow = group_axis(method.groups)
    return Chart(
        key=key,
        title=title,
        reading=reading,
        height=190 + 34 * len(sites),
        data=[drawn | trace],
        layout=horizontal | {"yaxis": row_axis([chart_text(s, 18) for s in sites], showgrid=False)},
        narrow=narrow,
    )


def _importance(group: GroupMetrics, site: str) -> _Cell:
    values = group.importance
    mean = sum(values.values()) / len(values) if values else 0.0
    ratio = values[site] / mean if site in values and mean > 0 else 0.0
    words = f"ω = {number_text(values.get(site, 0.0))}, {number_text(ratio)} × the mean"
    return (log2(ratio) if ratio else None), words


def _influence(group: GroupMetrics, site: str) -> _Cell:
    shift, cosine = group.influence.get(site), group.agreement.get(site, 0.0)
    return shift, f"{number_text(shift or 0.0)}, cosine with the others {number_text(cosine)}"


def _presence(group: GroupMetrics, site: str) -> _Cell:
    return (0, "not in it") if site in group.lost else (1, "in it")


def _rings(method: MethodResult, sites: Sequence[str]) -> Trace:
    """A ring in every cell that is an outlier."""
    marked = [
        (column, row)
        for row, site in enumerate(sites)
        for column, group in enumerate(method.groups)
        if group.name in method.outliers.get(site, ())
    ]
    return {
        "type": "scatter", "mode": "markers", "x": [x for x, _ in marked],
        "y": [y for _, y in marked], "hoverinfo": "skip", "showlegend": False,
        "marker": {
            "symbol": "circle-open", "size": 12, "color": "--ink",
            "line": {"width": 1.75, "color": "--ink"},
        },
    }  # fmt: skip


def _flagged(method: MethodResult) -> str:
    if not method.outliers:
        return "No site moves a group more than three times as far as the median site."
    return (
        f"Ringed where it is more than three times as far as for the median site, in this many "
        f"groups: {_counts(method.outliers)}; look at such a site's data and adapter."
    )


def _opposed(method: MethodResult) -> str:
    if not method.opposed:
        return ""
    return (
        f" Against the others, with a cosine below {OPPOSITE:g}, pull in this many groups: "
        f"{_counts(method.opposed)}."
    )


def _counts(flagged: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{site} ({len(groups)})" for site, groups in sorted(flagged.items()))
