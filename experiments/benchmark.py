"""One benchmark, one command: every method on real tasks, kept as CSV, Markdown and a plot.

Example: python -m experiments.benchmark text --seeds 3
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.benchmark_runs import RESULTS, benchmark, compare_methods, fine_tuned_otherwise
from experiments.figures import draw_dots
from experiments.prepare import Name
from layerweld.merging.registry import METHODS
from layerweld.report.comparison.results import Comparison
from layerweld.report.comparison.spreads import MethodOverSeeds, over_seeds
from layerweld.report.comparison.tables import (
    comparison_markdown,
    method_accuracy_table,
    write_csv_files,
)
from layerweld.runtime.terminal import console


def main(
    name: Annotated[Name, typer.Argument()],
    methods: Annotated[str, typer.Option(help="Comma-separated, or `all`.")] = "all",
    seeds: Annotated[int, typer.Option(help="How many, from --first on.")] = 3,
    first: Annotated[int, typer.Option(help="The first seed.")] = 0,
    tune: Annotated[int, typer.Option(help="Candidates per method; 1: defaults.")] = 1,
    attention: Annotated[
        bool, typer.Option("--attention", help="LoRA on attention only; `language` always is.")
    ] = False,
    frozen_a: Annotated[
        bool, typer.Option("--frozen-a", help="One frozen A at all sites, as FFA-LoRA needs.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for all results.")] = RESULTS,
) -> None:
    """Compare the methods and write what is known after each of them."""
    bench = benchmark(name)
    names = ",".join(METHODS) if methods == "all" else methods
    settings = bench.settings.model_copy(update={"methods": names})
    settings, kind = fine_tuned_otherwise(settings, attention=attention, frozen_a=frozen_a)
    folder = output / f"{name}{kind}{'-tuned' if tune > 1 else ''}"
    numbers = range(first, first + seeds)
    comparison = compare_methods(
        settings, bench.nodes, numbers, tune, lambda known: write(known, folder)
    )
    console.print(method_accuracy_table(comparison))


def write(comparison: Comparison, folder: Path) -> None:
    """Write ``methods.csv``, ``sites.csv``, ``table.md`` and ``plot.png``."""
    write_csv_files(comparison, folder)
    command = f"python -m experiments.benchmark {' '.join(sys.argv[1:])}"
    text = f"`{command}`\n\n{comparison_markdown(comparison)}"
    (folder / "table.md").write_text(text, encoding="utf-8")
    plot(over_seeds(comparison), folder / "plot.png")


def plot(methods: list[MethodOverSeeds], file: Path) -> None:
    """Normalised accuracy, a row per method: every seed as a dot, their mean as a line."""
    shown = [line for line in methods if line.name != "individual"]
    spreads = {
        "mean over sites": [line.normalised for line in shown],
        "worst site": [line.worst for line in shown],
    }
    sides = {
        title: [[100 * value for value in spread.values] for spread in rows]
        for title, rows in spreads.items()
    }
    draw_dots([line.label for line in shown], sides, file)


if __name__ == "__main__":
    typer.run(main)
