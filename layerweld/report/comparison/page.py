"""``comparison.html``: methods side by side on one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from layerweld.report.comparison.conclusion import conclude_comparison
from layerweld.report.comparison.results import Comparison
from layerweld.report.comparison.spreads import MethodOverSeeds, Spread, over_seeds
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
from layerweld.report.page.render import Chart, Table, Trace, render_page
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
    mean = _spread_trace("mean over sites", [method.normalised for method in shown], "m-com") | {
        "marker": {"color": "--m-com", "symbol": "circle", "size": 10},
        "hovertemplate": "%{x:.1f} % of individual<extra></extra>",
    }
    worst = _spread_trace("worst site", [method.worst for method in shown], "m-regmean") | {
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
        },
    )


def _spread_trace(name: str, spreads: Sequence[Spread], colour: str) -> Trace:
    """A marker per row at the mean, with a standard deviation to either side; in percent."""
    return {
        "type": "scatter", "mode": "markers", "name": name, "y": list(range(len(spreads))),
        "x": [100 * spread.mean for spread in spreads],
        "error_x": {
            "array": [100 * (spread.deviation or 0.0) for spread in spreads],
            "color": f"--{colour}", "thickness": 1.5, "width": 4,
        },
    }  # fmt: skip


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
        },
    )


def _cost_marker(method: MethodOverSeeds, names: list[str]) -> Trace:
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
