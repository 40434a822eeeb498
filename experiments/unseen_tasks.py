"""Table 5: merge all sites but two, and judge the merge at those two as well.

Example: python -m experiments.unseen_tasks text --methods mean,com,regmean --splits 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import pandas as pd
import typer

from experiments.benchmark_runs import RESULTS, Nodes, benchmark, open_federation
from experiments.figures import COLOURS, INK, panels, save
from experiments.prepare import Name
from layerweld.settings.run import RunSettings

_METHODS = "mean,task-arithmetic,ties,iso-c,knots-ties,regmean,regmean++,com"


def main(
    name: Annotated[Name, typer.Argument()],
    methods: Annotated[str, typer.Option()] = _METHODS,
    splits: Annotated[int, typer.Option(help="How many; split k leaves sites 2k, 2k + 1 out.")] = 2,
    seed: Annotated[int, typer.Option()] = 0,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Run each split; writes ``unseen-tasks.csv`` and ``.png``."""
    bench = benchmark(name, seed)
    settings = bench.settings.model_copy(update={"methods": methods})
    rows: list[dict[str, Any]] = []
    for split in range(splits):
        rows += table_rows(settings, *divided(bench.nodes, split), split)
        (output / name).mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(rows)
        table.to_csv(output / name / "unseen-tasks.csv", index=False, float_format="%.6g")
    draw(table, output / name / "unseen-tasks.png")
    print(table.to_string(index=False, float_format="{:.4f}".format))


def divided(nodes: Nodes, split: int) -> tuple[Nodes, Nodes]:
    """The sites that are merged, and the two that are not."""
    out = {2 * split, 2 * split + 1}
    if max(out) >= len(nodes):
        raise typer.BadParameter(f"split {split} needs sites {sorted(out)} of {len(nodes)}")
    merged = [node for i, node in enumerate(nodes) if i not in out]
    return merged, [nodes[i] for i in sorted(out)]


def table_rows(
    settings: RunSettings, seen: Nodes, unseen: Nodes, split: int
) -> list[dict[str, Any]]:
    """One row a method: mean accuracy at the merged sites and at the others."""
    rows = []
    with open_federation(settings, seen) as merging, open_federation(settings, unseen) as judging:
        left_out = " ".join(info.site for info in judging.site_infos)
        split_columns = {"split": split, "left_out": left_out}
        for kind in ("base", "individual"):
            scores = merging.evaluate(kind), judging.evaluate(kind)
            rows.append(split_columns | {"method": kind} | means(scores))
        other_params = merging.average_other_params()
        for method in merging.methods:
            merged = merging.merge(method, other_params)
            scores = merging.evaluate("merged", merged), judging.evaluate("merged", merged)
            rows.append(split_columns | {"method": method.name} | means(scores))
    return rows


def means(scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean accuracy over the merged sites, and over those left out."""
    seen, unseen = (fmean(score.accuracy for score in by_site.values()) for by_site in scores)
    return {"seen": seen, "unseen": unseen}


def draw(table: pd.DataFrame, file: Path) -> None:
    """A panel per split: accuracy at merged and at unseen sites, a row per method."""
    splits = list(dict.fromkeys(table["split"]))
    figure, axes = panels(len(splits), width=4.8, height=4.2)
    for axis, split in zip(axes, splits, strict=True):
        shown = table[table["split"] == split]
        places = range(len(shown))
        axis.plot(100 * shown["seen"], places, "o", color=INK, label="merged sites")
        axis.plot(100 * shown["unseen"], places, "s", color=COLOURS[0], label="unseen sites")
        axis.set_yticks(list(places), list(shown["method"]), fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"without {shown['left_out'].iloc[0].replace(' ', ', ')}", fontsize=10)
        axis.set_xlabel("accuracy, %")
    axes[0].legend(fontsize=8, frameon=False)
    save(figure, file)


if __name__ == "__main__":
    typer.run(main)
