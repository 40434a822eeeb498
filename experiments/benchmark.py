"""One benchmark, one command: every method on real tasks, kept as CSV, Markdown and a plot.

Example: python -m experiments.benchmark text --seeds 3
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.benchmark_runs import RESULTS, benchmark, compare_methods, fine_tuned_otherwise
from experiments.figures import COLOURS, INK, panels, save
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
    comparison = compare_methods(
        settings,
        bench.nodes,
        range(first, first + seeds),
        tune,
        on_known=lambda known: write(known, folder),
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
    figure, sides = panels(2, height=0.32 * len(shown) + 1.4)
    for axes, key, title in (
        (sides[0], "normalised", "mean over sites"),
        (sides[1], "worst", "worst site"),
    ):
        for row, line in enumerate(shown):
            values = [100 * value for value in getattr(line, key).values]
            axes.plot(values, [row] * len(values), "o", color=COLOURS[0], alpha=0.6)
            mean = sum(values) / len(values)
            axes.plot([mean, mean], [row - 0.3, row + 0.3], color=INK, linewidth=2)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("% of individual fine-tuning")
        axes.set_yticks(range(len(shown)), [line.label for line in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
    sides[1].set_yticklabels([])
    save(figure, file)


if __name__ == "__main__":
    typer.run(main)
