"""Figure 5: what a method costs against what it keeps, out of a benchmark's ``methods.csv``.

Example: python -m experiments.costs text
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from experiments.benchmark_runs import RESULTS, Name
from experiments.figures import COLOURS, panels, save

_COSTS = {
    "bytes": "MB sent, up and down, all sites",
    "seconds": "seconds of merging, one machine",
    "peak_bytes": "GB resident at the peak, server and sites",
}


def main(
    name: Annotated[Name, typer.Argument()],
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Draw ``costs.png`` beside the table that it is made of."""
    table = pd.read_csv(output / name / "methods.csv")
    draw(table, output / name / "costs.png")


def draw(table: pd.DataFrame, file: Path) -> None:
    """A panel per cost; each dot is a method, named where it lies on the front."""
    merges = table[table["rounds"] > 0].copy()
    merges["bytes"] = (merges["bytes_up"] + merges["bytes_down"]) / 1e6
    merges["peak_bytes"] /= 1e9
    figure, axes = panels(len(_COSTS), width=4.2)
    for axis, (cost, label) in zip(axes, _COSTS.items(), strict=True):
        shown = merges.dropna(subset=[cost])
        axis.plot(shown[cost], 100 * shown["normalised"], "o", color=COLOURS[1], alpha=0.7)
        for row in front(shown, cost):
            axis.annotate(
                row["method"],
                (row[cost], 100 * row["normalised"]),
                (4, 4),
                textcoords="offset points",
                fontsize=7,
            )
        axis.set_xscale("linear" if cost == "peak_bytes" else "log")
        axis.set_xlabel(label)
    axes[0].set_ylabel("% of individual fine-tuning")
    save(figure, file)


def front(table: pd.DataFrame, cost: str) -> list[Any]:
    """Methods that no cheaper one beats, cheapest first."""
    best, rows = float("-inf"), []
    for _, row in table.sort_values([cost, "normalised"], ascending=[True, False]).iterrows():
        if row["normalised"] > best:
            best = row["normalised"]
            rows.append(row)
    return rows


if __name__ == "__main__":
    typer.run(main)
