"""The demo over several seeds, all methods side by side: a CSV, a table for the README and a plot.

Example: python -m experiments.demo_seeds --seeds 0,1,2
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from experiments.demo_runs import run_demo, summary_rows
from experiments.figures import draw_dots
from layerweld.merging.registry import METHODS

_REFERENCES = {"base": "Base model", "individual": "Individual fine-tuning"}
_METHODS = "com,jacobi,regmean++,regmean,task-arithmetic,mean"
_FIGURES = ("accuracy", "normalised", "worst_normalised")


def main(
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2",
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = _METHODS,
    samples: Annotated[int, typer.Option(help="Calibration samples per site.")] = 50,
    output: Annotated[Path, typer.Option(help="Folder of the three files.")] = Path(
        "experiments/results"
    ),
) -> None:
    """Run the demo once per seed and write what every method reached."""
    rows: list[dict[str, Any]] = []
    for seed in (int(seed) for seed in seeds.split(",")):
        results = run_demo(seed, methods, {}, samples)
        rows += [{"seed": seed} | row for row in summary_rows(results)]
        output.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(output / "demo-seeds.csv", index=False)
        print(f"seed {seed} done", flush=True)
    frame = pd.DataFrame(rows)
    (output / "demo-seeds.md").write_text(table(frame), encoding="utf-8")
    plot(frame, output / "demo-seeds.png")
    print(table(frame))


def table(frame: pd.DataFrame) -> str:
    """Mean and standard deviation over the seeds in percent, as Markdown, in the runs' order."""
    lines = [
        "| method | accuracy | normalised | worst site, normalised |",
        "| --- | ---: | ---: | ---: |",
    ]
    for method, group in frame.groupby("method", sort=False):
        cells = [f"{100 * group[f].mean():.1f} ± {100 * group[f].std():.1f}" for f in _FIGURES]
        lines.append(f"| {label(str(method))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def label(method: str) -> str:
    """The method's or the reference's name for humans."""
    return _REFERENCES.get(method) or METHODS[method].label


def plot(frame: pd.DataFrame, file: Path) -> None:
    """Normalised accuracy, a row per method: every seed as a dot, their mean as a line."""
    merges = [m for m in frame["method"].unique() if m not in _REFERENCES]
    columns = {"mean over sites": "normalised", "worst site": "worst_normalised"}
    sides = {
        title: [list(100 * frame.loc[frame["method"] == method, column]) for method in merges]
        for title, column in columns.items()
    }
    draw_dots([label(method) for method in merges], sides, file)


if __name__ == "__main__":
    typer.run(main)
