"""Figure 1 of the paper: how far merging moves the inputs of every layer group (eq. 8).

Example: python -m experiments.shift text
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.ticker import MaxNLocator

from experiments.benchmark_runs import RESULTS, benchmark, open_federation
from experiments.figures import COLOURS, panels, save
from experiments.prepare import Name
from layerweld.merging.registry import METHODS


def main(
    name: Annotated[Name, typer.Argument()],
    methods: Annotated[str, typer.Option()] = "task-arithmetic,regmean,regmean++,com",
    seed: Annotated[int, typer.Option()] = 0,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Merge by each method, let every site measure its shift; writes ``shift.csv``, ``.png``."""
    bench = benchmark(name, seed)
    settings = bench.settings.model_copy(update={"methods": methods})
    rows = []
    with open_federation(settings, bench.nodes) as federation:
        other_params = federation.average_other_params()
        for method in federation.methods:
            shifts = federation.measure_shift(federation.merge(method, other_params))
            rows += [
                {"method": method.name, "group": group, "shift": sum(sites.values())}
                for group, sites in shifts.items()
            ]
    table = pd.DataFrame(rows)
    (output / name).mkdir(parents=True, exist_ok=True)
    table.to_csv(output / name / "shift.csv", index=False, float_format="%.6g")
    draw(table, output / name / "shift.png")
    sums = table.groupby("method", sort=False)["shift"].sum()
    print(sums.to_string(float_format="{:.4g}".format))


def kind_of(group: str) -> str:
    """A group's name after its block's number: the same in every block."""
    parts = group.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else group


def draw(table: pd.DataFrame, file: Path) -> None:
    """A panel for each kind of group, a line per method, over depth."""
    table = table.assign(kind=table["group"].map(kind_of))
    kinds = list(dict.fromkeys(table["kind"]))
    figure, axes = panels(len(kinds), width=3.2)
    labels: Mapping[str, str] = {method: METHODS[method].label for method in table["method"]}
    for axis, kind in zip(axes, kinds, strict=True):
        for colour, (method, label) in zip(COLOURS, labels.items(), strict=False):
            line = table[(table["kind"] == kind) & (table["method"] == method)]["shift"]
            line = line.where(line > 0)  # nothing is merged before the first group: no shift
            axis.plot(range(len(line)), line, "o-", color=colour, label=label, markersize=3)
        axis.set_title(f"inputs of {kind}", fontsize=10)
        axis.set_xlabel("block")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_yscale("log")
    axes[0].set_ylabel("Σ over sites, eq. 8")
    axes[0].legend(fontsize=7, frameon=False)
    save(figure, file)


if __name__ == "__main__":
    typer.run(main)
