"""Which normalisation, ridge and shrinkage merge the demo's sites best? Writes a CSV and a table.

Chosen on seeds that the demo's own table does not use, so that the choice cannot flatter it.

Example: python -m experiments.choose_defaults --seeds 3,4,5
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from experiments.demo_runs import run_demo, summary_rows

_SETTINGS = (
    *itertools.product(("token", "feature", "trace", "none"), (0.01, 0.1), (1.0,)),
    ("token", 0.01, 0.9),
    ("token", 0.1, 0.9),
)
"""Normalisation, ridge and shrinkage."""
_KEYS = ("seed", "normalization", "ridge", "shrinkage", "samples")


def main(
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "3,4,5",
    samples: Annotated[int, typer.Option(help="Calibration samples per site.")] = 50,
    output: Annotated[Path, typer.Option(help="CSV to write.")] = Path(
        "experiments/results/defaults.csv"
    ),
) -> None:
    """Run the chain once for every setting and seed; a finished row is not run again."""
    done: list[dict[Any, Any]] = []
    if output.exists():
        done += pd.read_csv(output).to_dict("records")
    known = {tuple(row[key] for key in _KEYS) for row in done}
    numbers = [int(seed) for seed in seeds.split(",")]
    for seed, (normalization, ridge, shrinkage) in itertools.product(numbers, _SETTINGS):
        merge = {"normalization": normalization, "ridge": ridge, "shrinkage": shrinkage}
        row_settings = {"seed": seed, **merge, "samples": samples}
        if tuple(row_settings.values()) in known:
            continue
        rows = summary_rows(run_demo(seed, "com", merge, samples))
        (row,) = (row for row in rows if row["method"] == "com")
        done.append(row_settings | row)
        output.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(done).to_csv(output, index=False)
        print(
            f"{row_settings}: {row['normalised']:.4f}, worst {row['worst_normalised']:.4f}",
            flush=True,
        )
    means = (
        pd.DataFrame(done)
        .groupby([*_KEYS[1:]])[["normalised", "worst_normalised"]]
        .agg(["mean", "std"])
        .sort_values(("normalised", "mean"), ascending=False)
    )
    print(means.to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    typer.run(main)
