"""The report's numbers for the terminal and for a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from layerweld.report.results import MethodResult, RunResults
from layerweld.report.scores import (
    best_at,
    best_merges,
    evaluated,
    half_width,
    normalised,
    scored_sites,
    summaries,
)
from layerweld.report.wording import percent
from layerweld.untrusted.text import csv_cell, shown


def site_accuracy_table(results: RunResults) -> Table:
    """Accuracy by site and method; the best merge of each row is bold.

    The last rows are the means and the worst site's normalised accuracy, as in the report: over
    the sites at which every evaluated method has a score. Normalised is accuracy / accuracy of the
    site's own model.
    """
    methods = evaluated(results)
    table = Table(title="Held-out accuracy, %", box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    table.add_column("Site", no_wrap=True)
    for method in methods:
        longest = max(len(word) for word in method.label.split())
        lines = wrap(method.label, longest, break_on_hyphens=False)
        table.add_column(Text("\n").join(map(plain, lines)), justify="right", no_wrap=True)
    for site in scored_sites(results):
        values = {m.name: m.scores[site].accuracy for m in methods if site in m.scores}
        _add_row(table, site, methods, values, best_at(results, site))
    table.add_section()
    by_method = summaries(results)
    means = {name: s.mean for name, s in by_method.items()}
    shares = {n: s.mean_normalised for n, s in by_method.items() if s.mean_normalised is not None}
    worst = {name: s.worst[1] for name, s in by_method.items() if s.worst}
    for title, values in (
        ("mean", means), ("normalised", shares), ("worst site", worst),
    ):  # fmt: skip
        if values:
            _add_row(table, title, methods, values, best_merges(values))
    return table


def write_accuracy_csv(results: RunResults, file: Path) -> None:
    """A line per site and method: fractions at full precision, empty where nothing is known."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("site", "method", "accuracy", "normalised", "samples", "half_width_95"))
        for method in evaluated(results):
            for site, score in method.scores.items():
                share = normalised(results, method, site)
                row = (site, method.name, score.accuracy, share, score.samples, half_width(score))
                writer.writerow(map(csv_cell, row))


def _add_row(
    table: Table,
    title: str,
    methods: Sequence[MethodResult],
    values: dict[str, float],
    best: frozenset[str],
) -> None:
    cells = [
        Text(_bare(values.get(m.name)), style="bold" if m.name in best else "") for m in methods
    ]
    table.add_row(plain(title), *cells)


def _bare(value: float | None) -> str:
    """Percent without the sign, which the title has: every column counts on a terminal."""
    return percent(value).removesuffix("\u00a0%")


def plain(text: str) -> Text:
    """A name as it is: no rich markup, nothing that could steer the terminal."""
    return Text(shown(text))
