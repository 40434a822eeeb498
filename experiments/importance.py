"""Figures 2 and 6: does a site's importance ω follow what fine-tuning gained it, on which model?

Example: python -m experiments.importance text
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Annotated

import pandas as pd
import typer

from client.site import site_of_node
from client.state import site_state
from experiments.benchmark_runs import RESULTS, Nodes, benchmark, compare_methods, open_federation
from experiments.figures import COLOURS, INK, legend_above, panels, save
from experiments.prepare import Name
from layerweld.model.collect import ReplayableModel, collect
from layerweld.model.schedule import Step
from layerweld.report.comparison.results import Comparison
from layerweld.runtime.incidents import raising_here
from layerweld.settings.run import RunSettings
from layerweld.statistics.gram import off_diagonal_importance
from layerweld.statistics.group import ProductForm

_SOURCES = {
    "gap": "oracle: accuracy gained by fine-tuning",
    "merged": "ω on the merged model (the chain)",
    "pretrained": "ω on the base model",
}


def main(
    name: Annotated[Name, typer.Argument()],
    seed: Annotated[int, typer.Option()] = 0,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Measure ω per site in two models, and set it beside the gap; writes ``importance.*``."""
    bench = benchmark(name, seed)
    settings = bench.settings.model_copy(update={"methods": "com"})
    table = of_the_chain(compare_methods(settings, bench.nodes, [seed]))
    table["pretrained"] = pd.Series(on_the_base_model(settings, bench.nodes))
    (output / name).mkdir(parents=True, exist_ok=True)
    table.to_csv(output / name / "importance.csv", index_label="site", float_format="%.6g")
    draw(table, output / name / "importance.png")
    for source in ("merged", "pretrained"):
        print(source, correlation_text(table["gap"], table[source]))
    print("merged ~ pretrained", correlation_text(table["merged"], table["pretrained"]))


def of_the_chain(comparison: Comparison) -> pd.DataFrame:
    """Per site: the accuracy gap, and ω averaged over the chain's groups."""
    results = {entry.result.name: entry.result for entry in comparison.entries}
    base, own, chain = results["base"], results["individual"], results["com"]
    return pd.DataFrame(
        {
            "gap": {s: own.scores[s].accuracy - base.scores[s].accuracy for s in own.scores},
            "merged": {s: fmean(g.importance[s] for g in chain.groups) for s in own.scores},
        }
    )


def on_the_base_model(
    settings: RunSettings, nodes: Nodes, groups: int | None = None
) -> dict[str, float]:
    """Per site: ω of its samples in the base model, averaged over the first groups, or all."""
    importance = {}
    with open_federation(settings, nodes) as federation:
        layers = federation.plan.layer_names
        for node in nodes:
            with raising_here():
                site = site_of_node(node, settings)
            state = site_state(site, settings, federation.run)
            plan = state.plan.restricted_to(layers)
            model = ReplayableModel(state.base.backbone, plan)
            recording = model.record(state.batches)
            statistics = collect(
                model,
                recording,
                [batch.entry for batch in recording],
                Step(0, plan.groups[:groups], "merged"),
                {},
                {},
                settings.merge,
                ProductForm(dense=False, with_updates=False),
            )
            importance[site.name] = fmean(off_diagonal_importance(s.gram) for s in statistics)
    return importance


def correlation_text(one: pd.Series, other: pd.Series) -> str:
    """Pearson's and Spearman's coefficients, with the number of sites they rest on."""
    r, rho = one.corr(other), one.rank().corr(other.rank())
    return f"r = {r:.2f}, ρ = {rho:.2f}, {len(one)} sites"


def draw(table: pd.DataFrame, file: Path) -> None:
    """Left: ω against the gap. Right: the three, each as a share of its largest."""
    figure, (scatter, bars) = panels(2, width=5.4, height=4.2)
    for colour, source in zip(COLOURS, ("merged", "pretrained"), strict=False):
        label = f"{_SOURCES[source]}\n{correlation_text(table['gap'], table[source])}"
        scatter.plot(100 * table["gap"], table[source], "o", color=colour, label=label)
    for site, row in table.iterrows():
        scatter.annotate(
            site, (100 * row["gap"], row["merged"]), (4, 3), textcoords="offset points", fontsize=7
        )
    scatter.set_xlabel("accuracy gained by fine-tuning, points")
    scatter.set_ylabel("ω, mean over the groups")
    legend_above(scatter)
    shares = table / table.max()
    places = range(len(shares))
    for i, (source, label) in enumerate(_SOURCES.items()):
        colour = (INK, *COLOURS)[i]
        bars.bar(
            [p + 0.27 * (i - 1) for p in places], shares[source], 0.25, color=colour, label=label
        )
    bars.set_xticks(list(places), list(shares.index), rotation=30, fontsize=8)
    bars.set_ylabel("share of the largest")
    legend_above(bars)
    save(figure, file)


if __name__ == "__main__":
    typer.run(main)
