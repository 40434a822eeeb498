"""Figure 5: what a method costs against what it keeps, out of a benchmark's ``methods.csv``.

Example: python -m experiments.costs text
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from experiments.benchmark_runs import RESULTS
from experiments.figures import COLOURS, INK, legend_above, panels, save
from experiments.prepare import Name
from layerweld.merging.registry import METHODS

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
    """A panel per cost; each dot is a method, coloured where no cheaper one beats it."""
    merges = table[table["rounds"] > 0].copy()
    merges["bytes"] = (merges["bytes_up"] + merges["bytes_down"]) / 1e6
    merges["peak_bytes"] /= 1e9
    best = {cost: front(merges.dropna(subset=[cost]), cost) for cost in _COSTS}
    named = [method for method in merges["method"] if method in set().union(*best.values())]
    looks = dict(zip(named, product("osD^v", COLOURS), strict=False))
    figure, axes = panels(len(_COSTS), width=4.2, height=4.2)
    for axis, (cost, label) in zip(axes, _COSTS.items(), strict=True):
        for method, x, y in merges[["method", cost, "normalised"]].itertuples(index=False):
            on_front = method in best[cost]
            mark, colour = looks[method] if on_front else ("o", INK)
            alpha, name = (1.0, METHODS[method].label) if on_front else (0.2, None)
            axis.plot([x], [100 * y], mark, color=colour, alpha=alpha, label=name)
        axis.set_xscale("linear" if cost == "peak_bytes" else "log")
        axis.set_xlabel(label)
        legend_above(axis)
    axes[0].set_ylabel("% of individual fine-tuning")
    save(figure, file)


def front(table: pd.DataFrame, cost: str) -> list[str]:
    """Methods that no cheaper one beats, cheapest first."""
    best, methods = float("-inf"), []
    for _, row in table.sort_values([cost, "normalised"], ascending=[True, False]).iterrows():
        if row["normalised"] > best:
            best = row["normalised"]
            methods.append(row["method"])
    return methods


if __name__ == "__main__":
    typer.run(main)
