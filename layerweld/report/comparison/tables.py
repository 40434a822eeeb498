"""A comparison for the terminal, for a spreadsheet and for a README: methods are rows."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from layerweld.report.comparison.conclusion import conclude_comparison
from layerweld.report.comparison.results import Comparison
from layerweld.report.comparison.spreads import MethodOverSeeds, Spread, individuals, over_seeds
from layerweld.report.run.tables import plain
from layerweld.report.scores import REFERENCES, best_merges
from layerweld.report.wording import byte_text, percent, time_text
from layerweld.runtime.disk import writing
from layerweld.untrusted.text import csv_cell, markdown, shown

_ACCURACY = ("Method", "Accuracy %", "Normalised %", "Worst site %", "Where")
_COST = ("Rounds", "Up", "Down", "Time", "Peak memory")


def method_accuracy_table(comparison: Comparison) -> Table:
    """One row per method: means over sites, then over seeds; the best merge is bold."""
    return _method_table(comparison, "Held-out accuracy", range(len(_ACCURACY)))


def method_cost_table(comparison: Comparison) -> Table:
    """One row per method: what its merge took."""
    cost = range(len(_ACCURACY), len(_ACCURACY) + len(_COST))
    table = _method_table(comparison, "Cost", [0, *cost])
    table.caption = notes(comparison)
    table.caption_justify = "left"
    return table


def _method_table(comparison: Comparison, title: str, columns: Sequence[int]) -> Table:
    table = Table(title=title)
    for number in columns:
        table.add_column(method_head()[number], justify="left" if number in (0, 4) else "right")
    methods = over_seeds(comparison)
    best = best_merges({method.name: method.normalised.mean for method in methods})
    for method in methods:
        style = "bold" if method.name in best else ""
        cells = method_cells(method)
        table.add_row(*(Text(shown(cells[number]), style=style) for number in columns))
        if method.name == REFERENCES[-1]:
            table.add_section()
    return table


def methods_by_site_table(comparison: Comparison) -> Table:
    """Accuracy by method and site, mean over the seeds; the best merge of a site is bold."""
    table = Table(title="Held-out accuracy by site")
    table.add_column("Method")
    methods = over_seeds(comparison)
    best = {}
    for site in methods[0].sites:
        table.add_column(plain(site), justify="right")
        best[site] = best_merges({method.name: method.sites[site].mean for method in methods})
    for method in methods:
        cells = [
            Text(percent(spread.mean), style="bold" if method.name in best[site] else "")
            for site, spread in method.sites.items()
        ]
        table.add_row(plain(method.label), *cells)
    return table


def refusal_lines(comparison: Comparison) -> list[str]:
    """Every method that could not work, and why."""
    return [f"{r.label} ({r.name}) was left out: {r.reason}" for r in comparison.refused]


def closing_lines(comparison: Comparison) -> list[str]:
    """What stands below the tables in a terminal: the refusals, then the conclusion."""
    return [*refusal_lines(comparison), conclude_comparison(over_seeds(comparison))]


def notes(comparison: Comparison) -> str:
    """How to read the numbers, in three sentences."""
    numbers = ", ".join(map(str, comparison.seeds))
    several = len(comparison.seeds) > 1
    seeds = f"Seeds {numbers}: mean ± standard deviation." if several else f"Seed {numbers}."
    return (
        f"{seeds} Normalised: accuracy / accuracy of the site's own model. "
        f"{budget_text(comparison)} Up, down: bytes of all sites together; time: of merging "
        f"alone. Peak memory: resident memory of the one process that runs server and sites."
    )


def budget_text(comparison: Comparison) -> str:
    """Where the settings come from."""
    listed = ", ".join(f"{key} = {value}" for key, value in comparison.given.items())
    given = f"; but for {listed}, as the run's file has it" if listed else ""
    if comparison.budget == 1:
        usual = "each method's defaults, which are its paper's where it has one value"
        return f"Settings: {usual}{given}."
    return (
        f"Settings: the best of at most {comparison.budget} declared candidates per method and "
        f"seed, on a fifth of each site's samples that nothing was trained on{given}."
    )


def comparison_markdown(comparison: Comparison) -> str:
    """All tables as Markdown: methods, then by site, then what was chosen."""
    methods = over_seeds(comparison)
    parts = [_markdown(method_head(), [method_cells(method) for method in methods])]
    parts += [_markdown(*site_cells(methods))]
    if chosen := tuned_cells(methods):
        parts += [_markdown(["Method", "Chosen, seed by seed"], chosen)]
    refusals = "\n".join(f"- {markdown(text)}" for text in refusal_lines(comparison))
    parts += [refusals, markdown(notes(comparison), 4000)]
    return "\n\n".join(part for part in parts if part) + "\n"


def method_head() -> list[str]:
    """Names of the columns of :func:`method_cells`."""
    return [*_ACCURACY, *_COST]


def site_cells(methods: Sequence[MethodOverSeeds]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of accuracy by method and site, mean over the seeds."""
    sites = list(methods[0].sites)
    rows = [[method.label, *(percent(method.sites[s].mean) for s in sites)] for method in methods]
    return ["Method", *sites], rows


def tuned_cells(methods: Sequence[MethodOverSeeds]) -> list[list[str]]:
    """Settings that were chosen, seed by seed; none where nothing was tuned."""
    return [[method.label, "; ".join(method.tuned)] for method in methods if method.tuned]


def write_csv_files(comparison: Comparison, folder: Path) -> None:
    """``methods.csv``, one method per method; ``sites.csv``, one per seed, method and site."""
    _write_csv(folder / "methods.csv", _method_rows(comparison))
    _write_csv(folder / "sites.csv", _site_rows(comparison))


def method_cells(method: MethodOverSeeds) -> list[str]:
    """One row of the table of methods, as :func:`method_head` names it."""
    is_merge = method.name not in REFERENCES
    cost = [
        f"{method.rounds:,}", byte_text(method.bytes_up), byte_text(method.bytes_down),
        time_text(method.seconds),
        "–" if method.peak_bytes is None else byte_text(method.peak_bytes),
    ]  # fmt: skip
    return [
        method.label,
        _spread(method.accuracy),
        _spread(method.normalised),
        _spread(method.worst),
        method.worst_site if method.name != "individual" else "",
        *(cost if is_merge else [""] * len(cost)),
    ]


def _spread(spread: Spread) -> str:
    if spread.deviation is None:
        return f"{100 * spread.mean:.1f}"
    return f"{100 * spread.mean:.1f} ± {100 * spread.deviation:.1f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = ([markdown(cell) for cell in cells] for cells in (head, *rows))
    first, *others = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join((first, f"| {' | '.join(rule)} |", *others))


def _method_rows(comparison: Comparison) -> Iterator[Sequence[object]]:
    yield (
        "method", "seeds", "accuracy", "accuracy_sd", "normalised", "normalised_sd", "worst",
        "worst_sd", "worst_site", "rounds", "bytes_up", "bytes_down", "seconds", "peak_bytes",
        "budget", "tuned",
    )  # fmt: skip
    for method in over_seeds(comparison):
        spreads = (method.accuracy, method.normalised, method.worst)
        numbers = [value for s in spreads for value in (s.mean, s.deviation)]
        yield (
            method.name, len(method.accuracy.values), *numbers, method.worst_site, method.rounds,
            method.bytes_up, method.bytes_down, method.seconds, method.peak_bytes,
            comparison.budget, "; ".join(method.tuned),
        )  # fmt: skip


def _site_rows(comparison: Comparison) -> Iterator[Sequence[object]]:
    yield "seed", "method", "site", "accuracy", "normalised", "samples"
    alone = individuals(comparison)
    for entry in comparison.entries:
        own = alone[entry.seed].scores
        for site, score in entry.result.scores.items():
            share = score.accuracy / own[site].accuracy if own[site].accuracy else None
            row = (entry.seed, entry.result.name, site, score.accuracy, share)
            yield (*row, score.samples)


def _write_csv(file: Path, rows: Iterator[Sequence[object]]) -> None:
    with writing(file) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(map(csv_cell, row) for row in rows)
