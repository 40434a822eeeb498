"""A comparison for the terminal, for a spreadsheet and for a README: methods are rows."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from layerweld.report.comparison.conclusion import verdict
from layerweld.report.comparison.results import Comparison
from layerweld.report.comparison.spreads import Line, Spread, individuals, lines
from layerweld.report.run.tables import plain
from layerweld.report.scores import REFERENCES, best_merges
from layerweld.report.wording import byte_text, percent, time_text
from layerweld.runtime.disk import writing
from layerweld.untrusted.text import csv_cell, markdown, shown

_ACCURACY = ("Method", "Accuracy %", "Normalised %", "Worst site %", "Where")
_COST = ("Rounds", "Up", "Down", "Time", "Peak memory")


def accuracy_table(comparison: Comparison) -> Table:
    """One row per method: means over sites, then over seeds; the best merge is bold."""
    return _method_table(comparison, "Held-out accuracy", range(len(_ACCURACY)))


def cost_table(comparison: Comparison) -> Table:
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
    found = lines(comparison)
    best = best_merges({line.name: line.normalised.mean for line in found})
    for line in found:
        style = "bold" if line.name in best else ""
        cells = method_cells(line)
        table.add_row(*(Text(shown(cells[number]), style=style) for number in columns))
        if line.name == REFERENCES[-1]:
            table.add_section()
    return table


def site_table(comparison: Comparison) -> Table:
    """Accuracy by method and site, mean over the seeds; the best merge of a site is bold."""
    table = Table(title="Held-out accuracy by site")
    table.add_column("Method")
    found = lines(comparison)
    best = {}
    for site in found[0].sites:
        table.add_column(plain(site), justify="right")
        best[site] = best_merges({line.name: line.sites[site].mean for line in found})
    for line in found:
        cells = [
            Text(percent(spread.mean), style="bold" if line.name in best[site] else "")
            for site, spread in line.sites.items()
        ]
        table.add_row(plain(line.label), *cells)
    return table


def refusal_lines(comparison: Comparison) -> list[str]:
    """Every method that could not work, and why."""
    return [f"{r.label} ({r.name}) was left out: {r.reason}" for r in comparison.refused]


def closing_lines(comparison: Comparison) -> list[str]:
    """What stands below the tables in a terminal: the refusals, then the verdict."""
    return [*refusal_lines(comparison), verdict(lines(comparison))]


def notes(comparison: Comparison) -> str:
    """How to read the numbers, in three sentences."""
    numbers = ", ".join(map(str, comparison.seeds))
    several = len(comparison.seeds) > 1
    seeds = f"Seeds {numbers}: mean ± standard deviation." if several else f"Seed {numbers}."
    return (
        f"{seeds} Normalised: accuracy / accuracy of the site's own model. "
        f"{budget_text(comparison)} Up, down: bytes of all sites together; time: of merging "
        f"alone. Peak memory: resident memory of the one process that plays server and sites."
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
        f"seed, on a fifth of each site's rows that nothing was trained on{given}."
    )


def comparison_markdown(comparison: Comparison) -> str:
    """All tables as Markdown: methods, then by site, then what was chosen."""
    found = lines(comparison)
    parts = [_markdown(method_head(), [method_cells(line) for line in found])]
    parts += [_markdown(*site_cells(found))]
    if chosen := tuned_cells(found):
        parts += [_markdown(["Method", "Chosen, seed by seed"], chosen)]
    refusals = "\n".join(f"- {markdown(text)}" for text in refusal_lines(comparison))
    parts += [refusals, markdown(notes(comparison), 4000)]
    return "\n\n".join(part for part in parts if part) + "\n"


def method_head() -> list[str]:
    """Names of the columns of :func:`method_cells`."""
    return [*_ACCURACY, *_COST]


def site_cells(found: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of accuracy by method and site, mean over the seeds."""
    sites = list(found[0].sites)
    rows = [[line.label, *(percent(line.sites[s].mean) for s in sites)] for line in found]
    return ["Method", *sites], rows


def tuned_cells(found: Sequence[Line]) -> list[list[str]]:
    """Settings that were chosen, seed by seed; none where nothing was tuned."""
    return [[line.label, "; ".join(line.tuned)] for line in found if line.tuned]


def write_csv_files(comparison: Comparison, folder: Path) -> None:
    """``methods.csv``, one line per method; ``sites.csv``, one per seed, method and site."""
    _write_csv(folder / "methods.csv", _method_rows(comparison))
    _write_csv(folder / "sites.csv", _site_rows(comparison))


def method_cells(line: Line) -> list[str]:
    """One row of the table of methods, as :func:`method_head` names it."""
    is_merge = line.name not in REFERENCES
    cost = [
        f"{line.rounds:,}", byte_text(line.bytes_up), byte_text(line.bytes_down),
        time_text(line.seconds), "–" if line.peak_bytes is None else byte_text(line.peak_bytes),
    ]  # fmt: skip
    return [
        line.label,
        _spread(line.accuracy),
        _spread(line.normalised),
        _spread(line.worst),
        line.worst_site if line.name != "individual" else "",
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
    for line in lines(comparison):
        spreads = (line.accuracy, line.normalised, line.worst)
        numbers = [value for s in spreads for value in (s.mean, s.deviation)]
        yield (
            line.name, len(line.accuracy.values), *numbers, line.worst_site, line.rounds,
            line.bytes_up, line.bytes_down, line.seconds, line.peak_bytes, comparison.budget,
            "; ".join(line.tuned),
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
