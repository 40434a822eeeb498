"""The paper's Tables 3 and 4 on a benchmark: what each part of the chain adds, and samples needed.

Example: python -m experiments.ablation text components --seeds 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import typer

from experiments.benchmark_runs import RESULTS, benchmark, compare_methods
from experiments.figures import COLOURS, INK, panels, save
from experiments.prepare import Name
from layerweld.report.comparison.spreads import over_seeds
from layerweld.settings.run import RunSettings


@dataclass(frozen=True)
class Variant:
    """One row of a table of the paper."""

    label: str
    method: str
    merge: dict[str, str]
    samples: int = 0
    """Calibration samples per site; 0 for the benchmark's."""


_RAW = {"normalization": "none", "importance": "uniform"}
COMPONENTS = (
    Variant("RegMean", "regmean", _RAW),
    Variant("+ chain", "com", _RAW),
    Variant("+ normalisation", "com", {"normalization": "token", "importance": "uniform"}),
    Variant("+ importance", "com", {"normalization": "token", "importance": "off-diagonal"}),
)
"""Table 3: each row has one more part than the one before."""
SAMPLES = tuple(Variant(str(n), "com", {}, n) for n in (2, 5, 10, 50, 100, 200, 500))
"""Table 4, at fewer places."""


def main(
    name: Annotated[Name, typer.Argument()],
    table: Annotated[Literal["components", "samples"], typer.Argument()],
    seeds: Annotated[int, typer.Option(help="How many, from 0 on.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Run every row of a table once per seed; the CSV is written after each row."""
    bench = benchmark(name)
    rows = []
    for variant in COMPONENTS if table == "components" else SAMPLES:
        rows.append(table_row(variant, bench.settings, bench.nodes, range(seeds)))
        (output / name).mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(output / name / f"{table}.csv", index=False)
    draw(pd.DataFrame(rows), output / name / f"{table}.png")
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4f}".format))


def table_row(
    variant: Variant, settings: RunSettings, nodes: Sequence[Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """One row: fractions, over the seeds."""
    *_, method = over_seeds(compare_methods(with_variant(settings, variant), nodes, seeds))
    return {
        "variant": variant.label,
        "seeds": len(seeds),
        "normalised": method.normalised.mean,
        "normalised_sd": method.normalised.deviation,
        "worst": method.worst.mean,
        "worst_site": method.worst_site,
    }


def with_variant(settings: RunSettings, variant: Variant) -> RunSettings:
    """The benchmark's settings with those of one row of the table."""
    calibration = settings.calibration
    if variant.samples:
        calibration = calibration.model_copy(update={"samples": variant.samples})
    merge = settings.merge.model_copy(update=variant.merge)
    return settings.model_copy(
        update={"methods": variant.method, "merge": merge, "calibration": calibration}
    )


def draw(table: pd.DataFrame, file: Path) -> None:
    """Normalised accuracy by row of the table: mean over the sites, and the worst of them."""
    figure, (axis,) = panels(1, width=5.2)
    for key, colour, label in (
        ("normalised", COLOURS[0], "mean over the sites"),
        ("worst", INK, "worst site"),
    ):
        axis.plot(table["variant"], 100 * table[key], "o-", color=colour, label=label)
    axis.set_ylabel("% of individual fine-tuning")
    axis.legend(fontsize=8, frameon=False)
    save(figure, file)


if __name__ == "__main__":
    typer.run(main)
