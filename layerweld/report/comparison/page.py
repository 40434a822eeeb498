"""``comparison.html``: methods side by side on one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerweld.report.comparison.conclusion import conclude_comparison
from layerweld.report.comparison.results import Comparison
from layerweld.report.comparison.spreads import MethodOverSeeds, over_seeds
from layerweld.report.comparison.tables import (
    method_cells,
    method_head,
    notes,
    refusal_lines,
    site_cells,
    tuned_cells,
)
from layerweld.report.comparison.template import COMPARISON_PAGE
from layerweld.report.page.axes import axis, log_scale, row_axis, rule_at
from layerweld.report.page.palette import method_style
from layerweld.report.page.render import Chart, Table, render_page
from layerweld.report.scores import REFERENCES
from layerweld.report.wording import byte_text, chart_text
from layerweld.runtime.disk import writing


def write_comparison_report(comparison: Comparison, file: Path) -> None:
    """Write the page. Every name in it is escaped, since sites choose their names."""
    methods = over_seeds(comparison)
    tables = {
        "Methods": Table(method_head(), [method_cells(method) for method in methods]),
        "Accuracy by site": Table(*site_cells(methods)),
    }
    if chosen := tuned_cells(methods):
        tables["Settings chosen"] = Table(["Method", "Seed by seed"], chosen)
    text = render_page(
        COMPARISON_PAGE,
        [method_accuracy_chart(methods), method_cost_chart(methods)],
        name=comparison.name,
        conclusion=conclude_comparison(methods),
        notes=notes(comparison),
        refused=refusal_lines(comparison),
        tables=tables,
    )
    with writing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def method_accuracy_chart(methods: list[MethodOverSeeds]) -> Chart:
    """Normalised accuracy, a row per method: mean with its spread, worst site as an open marker."""
    shown = [method for method in methods if method.name != "individual"]
    places = list(range(len(shown)))
    mean = {
        "type": "scatter", "mode": "markers", "name": "mean over sites", "y": places,
        "x": [100 * method.normalised.mean for method in shown],
        "error_x": {
            "array": [100 * (method.normalised.deviation or 0.0) for method in shown],
            "color": "--m-com", "thickness": 1.5, "width": 4,
        },
        "marker": {"color": "--m-com", "symbol": "circle", "size": 10},
        "hovertemplate": "%{x:.1f} % of individual<extra></extra>",
    }  # fmt: skip
    worst = {
        "type": "scatter", "mode": "markers", "name": "worst site", "y": places,
        "x": [100 * method.worst.mean for method in shown],
        "error_x": {
            "array": [100 * (method.worst.deviation or 0.0) for method in shown],
            "color": "--m-regmean", "thickness": 1.5, "width": 4,
        },
        "marker": {
            "color": "--m-regmean", "symbol": "square-open", "size": 9, "line": {"width": 2},
        },
        "customdata": [chart_text(method.worst_site, 60) for method in shown],
        "hovertemplate": "%{x:.1f} % at the worst site, mostly %{customdata}<extra></extra>",
    }  # fmt: skip
    return Chart(
        key="methods",
        title="Normalised accuracy of each method",
        reading="A row is a method; the bar is one standard deviation over the seeds to either "
        "side; the method at 100 % is what the sites reach alone.",
        height=110 + 28 * len(shown),
        data=[mean, worst],
        layout={
            "xaxis": axis("", ticksuffix=" %"),
            "yaxis": row_axis([chart_text(method.label) for method in shown]),
            "shapes": [rule_at(100.0)],
            "hovermode": "closest",
        },
    )


def method_cost_chart(methods: list[MethodOverSeeds]) -> Chart:
    """Normalised accuracy against the bytes that travelled, a marker per method."""
    merges = [method for method in methods if method.name not in REFERENCES]
    names = [method.name for method in merges]
    return Chart(
        key="cost",
        title="Accuracy against traffic",
        reading="Bytes up and down, of all sites together, on a logarithmic axis: the further to "
        "the upper left, the more accuracy for the traffic.",
        height=420,
        data=[_cost_marker(method, names) for method in merges],
        layout={
            "xaxis": axis(
                "bytes up and down", **log_scale([_traffic(method) for method in merges])
            ),
            "yaxis": axis("% of individual", ticksuffix=" %"),
            "hovermode": "closest",
        },
    )


def _cost_marker(method: MethodOverSeeds, names: list[str]) -> dict[str, Any]:
    colour, symbol = method_style(method.name, names)
    return {
        "type": "scatter", "mode": "markers", "name": chart_text(method.label),
        "x": [_traffic(method)], "y": [100 * method.normalised.mean],
        "customdata": [byte_text(_traffic(method))],
        "hovertemplate": "%{y:.1f} % for %{customdata}<extra>%{fullData.name}</extra>",
        "marker": {"color": f"--{colour}", "symbol": symbol, "size": 11},
    }  # fmt: skip


def _traffic(method: MethodOverSeeds) -> float:
    return method.bytes_up + method.bytes_down
