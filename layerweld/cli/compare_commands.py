"""Compare methods on the same sites, or two runs of one merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from layerweld.report.comparison.results import Comparison


def compare(
    config: Annotated[Path, typer.Argument(help="TOML file with settings and [[sites]].")],
    methods: Annotated[
        str, typer.Option(help="Comma-separated names of `layerweld methods`, or `all`.")
    ] = "all",
    seeds: Annotated[
        int, typer.Option(min=1, help="How many; the first is the file's `calibration.seed`.")
    ] = 1,
    tune: Annotated[
        int,
        typer.Option(
            min=1, help="Candidates per method, chosen on samples set aside; 1: defaults."
        ),
    ] = 1,
    output: Annotated[
        Path, typer.Option(help="Folder to create, or that of an earlier comparison, to resume.")
    ] = Path("comparison"),
) -> None:
    """Which method serves your sites best? Every one on the same adapters, in one table.

    Adapters are trained or found once per seed. Sites need labelled held-out samples. Methods that
    cannot work on the sites' models are listed with the reason.

    Results are kept in the output folder: the same command resumes after an interruption, and with
    more methods or seeds it runs only those.

    With `--tune` every site sets a fifth of its samples aside. An adapter that a site brings along
    may have been trained on them.

    Example: `layerweld compare hospitals.toml --methods com,ties,mean --seeds 3 --output compared`
    """
    from layerweld.cli.in_process import compare_in_process
    from layerweld.merging.registry import METHODS
    from layerweld.report.comparison.files import KEPT, comparing_in, write_comparison
    from layerweld.runtime.terminal import showing_progress
    from layerweld.settings.comparison import ComparisonSettings
    from layerweld.settings.methods import methods_of
    from layerweld.settings.sites import read_run_file

    settings, sites = read_run_file(config)
    names = ",".join(METHODS) if methods == "all" else methods
    settings = settings.model_copy(update={"min_sites": len(sites), "methods": names})
    methods_of(settings)
    first = settings.calibration.seed
    settings.require_base()
    with comparing_in(output), showing_progress():
        comparison = compare_in_process(
            ComparisonSettings(settings, range(first, first + seeds), tune),
            [site.node_config() for site in sites],
            kept=output / KEPT,
            on_known=lambda known: write_comparison(known, output),
        )
    _show(comparison, output)


def compare_runs(
    one: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    other: Annotated[Path, typer.Argument(help="Output folder of the same run elsewhere.")],
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of a layer, as a share of its size.")
    ] = 1e-3,
) -> None:
    """Did two runs make the same merge? Equal bits, equal up to rounding, or different.

    Machines of one kind make equal bits; on another kind (`environment.json` in each folder) the
    last digits differ.

    Example: `layerweld compare-runs here/merged there/merged`
    """
    from layerweld.formats.same_runs import (
        environment_differences,
        layer_differences,
        require_within,
    )
    from layerweld.runtime.terminal import console
    from layerweld.untrusted.text import shown

    layers = layer_differences(one, other)
    for layer in layers:
        console.print(
            f"{layer.relative:8.1e}  {shown(layer.name)}", highlight=False, soft_wrap=True
        )
    for line in environment_differences(one, other):
        console.print(f"another machine: {shown(line)}", highlight=False, soft_wrap=True)
    require_within(layers, tolerance)
    same = all(layer.same_bits for layer in layers)
    equality = "equal bits" if same else f"equal within {tolerance:g}"
    console.print(f"{len(layers)} layers: {equality}", highlight=False)


def _show(comparison: Comparison, output: Path) -> None:
    from layerweld.report.comparison import tables
    from layerweld.runtime.terminal import console

    console.print(tables.method_accuracy_table(comparison))
    console.print(tables.method_cost_table(comparison))
    console.print(tables.methods_by_site_table(comparison))
    for line in tables.closing_lines(comparison):
        console.print(line, highlight=False)
    console.print(f"report  {output / 'comparison.html'}", highlight=False)
    console.print(f"tables  {output / 'methods.csv'}, sites.csv, comparison.md", highlight=False)
