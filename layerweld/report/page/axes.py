"""Axes and scales of the report's charts."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isfinite, log2, log10
from typing import Any

from layerweld.report.results import GroupMetrics
from layerweld.report.wording import block_of, chart_text, group_label, number_text, tick_text


def group_axis(groups: Sequence[GroupMetrics]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The axis along the chain: every group named, or on a phone and in long chains every block.

    Returns:
        What of the layout it decides, and what of that differs on a phone.
    """
    starts: dict[str, int] = {}
    for i, group in enumerate(groups):
        block = block_of(group.name)
        starts.setdefault(f"L{block}" if block else group.name, i)
    every = max(1, len(starts) // 12)
    shown = list(starts.items())[::every]
    coarse = {
        "tickvals": [i for _, i in shown],
        "ticktext": [chart_text(label, 12) for label, _ in shown],
        "tickangle": 0,
    }  # fmt: skip
    fine: dict[str, Any] = {
        "tickvals": list(range(len(groups))),
        "ticktext": [chart_text(group_label(g), 30) for g in groups],
        "tickangle": -60,
    }
    edges = {"range": [-0.6, len(groups) - 0.4], "showgrid": False}
    # The first slanted label reaches to the left of the chart: Plotly drops it if it has no room.
    room = max(8, round(3.4 * len(fine["ticktext"][0]))) if len(groups) <= 36 else 8
    wide = {
        "xaxis": axis("", **(fine if len(groups) <= 36 else coarse), **edges),
        "margin": {"l": room, "r": 16, "t": 8, "b": 8},
    }
    narrow = {f"xaxis.{key}": value for key, value in coarse.items()}
    return wide, narrow | {"margin.l": 8}


def log_scale(values: Sequence[float]) -> dict[str, Any]:
    """A tick per decade, fewer where there are many; 2 and 5 between them where there are few."""
    finite = [v for v in values if isfinite(v)] or [1.0]
    low, high = log10(min(finite)), log10(max(finite))
    decades = range(floor(low), floor(high) + 2)
    steps = (1, 2, 5) if high - low < 1.5 else (1, 3) if high - low < 3 else (1,)
    every = max(1, len(decades) // 7)
    ticks = [m * 10.0**k for k in decades[::every] for m in steps]
    pad = 0.06 * (high - low) + 0.05
    return {
        "type": "log", "range": [low - pad, high + pad], "tickvals": ticks,
        "ticktext": [tick_text(t) for t in ticks],
    }  # fmt: skip


def axis(title: str, **more: Any) -> dict[str, Any]:
    """One axis in the page's style; ``more`` is Plotly's."""
    named = {"text": title, "font": {"size": 12, "color": "--muted"}, "standoff": 10}
    return ({"title": named} if title else {}) | {
        "ticks": "", "gridcolor": "--line", "linecolor": "--line", "zeroline": False,
        "tickfont": {"color": "--muted", "size": 12}, "fixedrange": True, "automargin": True,
    } | more  # fmt: skip


def row_axis(labels: Sequence[str], **more: Any) -> dict[str, Any]:
    """A vertical axis with a name per row, the first on top; ``more`` is Plotly's."""
    return axis(
        "", tickvals=list(range(len(labels))), ticktext=list(labels),
        range=[len(labels) - 0.5, -0.5], tickfont={"color": "--ink", "size": 13}, **more,
    )  # fmt: skip


def rule_at(x: float) -> dict[str, Any]:
    """A vertical line through the whole chart, behind the markers."""
    return {
        "type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
        "line": {"color": "--ink", "width": 1.5},
    }  # fmt: skip


def ratio_bar(end: float) -> dict[str, Any]:
    """The colour bar of a chart of log2 ratios from ``-end`` to ``end``, labelled with ratios."""
    ratios = [1 / 8, 1 / 4, 1 / 2, 2 / 3, 0.8, 1, 1.25, 1.5, 2, 4, 8]
    marks = [r for r in ratios if abs(log2(r)) <= end + 1e-9]
    if len(marks) > 5:
        marks = [r for r in marks if r in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)]
    return _bar([log2(r) for r in marks], [f"× {r:.2g}" for r in marks])


def value_bar(top: float) -> dict[str, Any]:
    """The colour bar of a chart of values from 0 to ``top``, labelled at both ends and between."""
    marks = [0.0, top / 2, top]
    return _bar(marks, [number_text(value) for value in marks])


def _bar(values: Sequence[float], texts: Sequence[str]) -> dict[str, Any]:
    return {
        "tickvals": list(values), "ticktext": list(texts), "thickness": 10, "outlinewidth": 0,
        "len": 1, "tickfont": {"color": "--muted", "size": 12},
    }  # fmt: skip
