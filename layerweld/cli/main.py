"""The command line: look at a plan, merge folders, simulate sites, see the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from layerweld.deploy import coordinator_commands, site_commands
from layerweld.runtime.endings import run_and_end

if TYPE_CHECKING:
    from layerweld.cli.in_process import Nodes
    from layerweld.settings.run import RunSettings, Scalar

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Merge models that several sites fine-tuned, layer by layer, without moving their data.",
)

app.add_typer(coordinator_commands.app, name="coordinator")
app.add_typer(site_commands.app, name="site")

Base = Annotated[Path, typer.Argument(help="Folder of the base model (transformers).")]
Output = Annotated[Path, typer.Option(help="Folder to create. An interrupted run is resumed.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]


@app.command()
def demo(
    output: Output = Path("demo-output"),
    seed: Seed = 0,
    methods: Annotated[
        str, typer.Option(help="Comma-separated; the first one's merge is written out.")
    ] = "com,regmean++,regmean,task-arithmetic,mean",
) -> None:
    """Six sites, six real text tasks: fine-tune, merge, evaluate, report.

    Example: `layerweld demo --output demo-output`
    """
    from layerweld.demo import base_folder, demo_settings

    settings = demo_settings(seed, methods)
    nodes = [{"partition-id": number, "num-partitions": 6} for number in range(6)]
    _play(settings, nodes, str(base_folder()), output)


@app.command()
def simulate(
    config: Annotated[Path, typer.Argument(help="TOML file with settings and [[sites]].")],
    output: Annotated[
        Path | None, typer.Option(help="Folder to create; default: the file's `output`.")
    ] = None,
) -> None:
    """Play a federation of your own sites, model and data in this process.

    Example: `layerweld simulate hospitals.toml --output merged`
    """
    from layerweld.settings.sites import base_of, read_run_file

    settings, sites = read_run_file(config)
    base = base_of(settings, sites, config)
    settings = settings.model_copy(update={"min_sites": len(sites)})
    nodes = [site.node_config() for site in sites]
    folder = output or Path(settings.output or f"runs/{settings.name}")
    _play(settings, nodes, base, folder)


@app.command()
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
        typer.Option(min=1, help="Candidates per method, chosen on rows set aside; 1: defaults."),
    ] = 1,
    output: Annotated[
        Path, typer.Option(help="Folder to create, or one of an earlier comparison to go on with.")
    ] = Path("comparison"),
) -> None:
    """Which method serves your sites best? Every one on the same adapters, in one table.

    Adapters are trained or found once per seed. Sites need labelled held-out rows. Methods that
    cannot work on the sites' models are listed with the reason.

    What was played is kept in the output folder: the same command goes on after an interruption,
    and with more methods or seeds it plays only those.

    With `--tune` every site sets a fifth of its rows aside; an adapter that a site brings along may
    have been trained on them.

    Example: `layerweld compare hospitals.toml --methods com,ties,mean --seeds 3 --output compared`
    """
    from layerweld.cli.in_process import compare_in_process
    from layerweld.report.comparison import tables
    from layerweld.report.comparison.files import PLAYED, comparing_in, write_comparison
    from layerweld.runtime.terminal import console, showing_progress
    from layerweld.settings.methods import METHODS, methods_of
    from layerweld.settings.sites import base_of, read_run_file

    settings, sites = read_run_file(config)
    names = ",".join(METHODS) if methods == "all" else methods
    settings = settings.model_copy(update={"min_sites": len(sites), "methods": names})
    methods_of(settings)
    nodes = [site.node_config() for site in sites]
    first = settings.calibration.seed
    base = base_of(settings, sites, config)
    with comparing_in(output), showing_progress():
        found = compare_in_process(
            settings,
            nodes,
            base,
            range(first, first + seeds),
            tune,
            kept=output / PLAYED,
            on_known=lambda known: write_comparison(known, output),
        )
    console.print(tables.accuracy_table(found))
    console.print(tables.cost_table(found))
    console.print(tables.site_table(found))
    for line in tables.closing_lines(found):
        console.print(line, highlight=False)
    console.print(f"report  {output / 'comparison.html'}", highlight=False)
    console.print(f"tables  {output / 'methods.csv'}, sites.csv, comparison.md", highlight=False)


@app.command()
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

    found = layer_differences(one, other)
    for layer in found:
        console.print(
            f"{layer.relative:8.1e}  {shown(layer.name)}", highlight=False, soft_wrap=True
        )
    for line in environment_differences(one, other):
        console.print(f"another machine: {shown(line)}", highlight=False, soft_wrap=True)
    require_within(found, tolerance)
    same = all(layer.same_bits for layer in found)
    verdict = "equal bits" if same else f"equal within {tolerance:g}"
    console.print(f"{len(found)} layers: {verdict}", highlight=False)


@app.command()
def merge(
    context: typer.Context,
    base: Base,
    site: Annotated[
        list[str],
        typer.Option(help="NAME=ADAPTER:DATA, once per site: a PEFT folder, and rows or images."),
    ],
    output: Output,
    base_name: Annotated[
        str, typer.Option(help="What cards call the base model; default: its folder's name.")
    ] = "",
    normalization: Annotated[
        Literal["token", "feature", "trace", "none"], typer.Option(help="Of Gram matrices.")
    ] = "token",
    importance: Annotated[
        Literal["off-diagonal", "uniform"], typer.Option(help="Weight of a site in a group.")
    ] = "off-diagonal",
    shrinkage: Annotated[float, typer.Option(help="Factor on the off-diagonal of G.")] = 1.0,
    ridge: Annotated[float, typer.Option(help="λ as a fraction of mean(diag S).")] = 0.01,
    anchor: Annotated[
        Literal["base", "mean"], typer.Option(help="Where the ridge pulls to.")
    ] = "base",
    method: Annotated[
        str, typer.Option(help="One of `layerweld methods`; `chain` is what `--granularity` says.")
    ] = "chain",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY=VALUE of the method's settings, or TABLE.KEY=VALUE of any other table; "
            "any number of times.",
        ),
    ] = None,
    granularity: Annotated[
        Literal["group", "block", "model", "jacobi"],
        typer.Option(help="CoM, RegMean++, RegMean, or Jacobi rounds."),
    ] = "group",
    rounds: Annotated[int, typer.Option(help="Rounds of `--granularity jacobi`.")] = 2,
    rank: Annotated[int, typer.Option(help="Compress the merge to this rank; 0: exact.")] = 0,
    max_length: Annotated[int, typer.Option(help="Tokens after which a text is cut.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass.")] = 32,
    samples: Annotated[
        int, typer.Option(help="Rows to draw per site; 0: every row, in order.")
    ] = 0,
    seed: Seed = 0,
    covariate_shift: Annotated[
        bool, typer.Option("--covariate-shift", help="Measure eq. 8 per group and site.")
    ] = False,
) -> None:
    """Merge local PEFT adapters, each with rows of the data that it was trained for.

    Rows with their text in another column need `--set calibration.text-column=body`, say.

    Example: `layerweld merge base --site a=adapters/a:a.jsonl --site b=adapters/b:b.csv --output
    merged --method ties --set density=0.1`
    """
    from layerweld.settings.overrides import with_overrides
    from layerweld.settings.run import validate_settings
    from layerweld.untrusted.names import is_name

    nested: dict[str, Any] = {
        "methods": method,
        "base": str(base.expanduser()),
        "base-name": base_name,
        "name": output.name if is_name(output.name) else "merge",
        "min-sites": len(site),
        "merge": {
            "normalization": normalization,
            "importance": importance,
            "shrinkage": shrinkage,
            "ridge": ridge,
            "anchor": anchor,
            "granularity": granularity,
            "rounds": rounds,
            "rank": rank,
            "covariate-shift": "first" if covariate_shift else "off",
        },
        "calibration": {
            "samples": samples,
            "max-length": max_length,
            "batch-size": batch_size,
            "seed": seed,
        },
    }
    options = {
        f"{table}.{key}": f"--{key}"
        for table in ("merge", "calibration")
        for key in nested[table]
        if _is_typed(context, key.replace("-", "_"))
    }
    settings = with_overrides(validate_settings(nested), method, set_ or [], options)
    _play(settings, _nodes(site), str(base.expanduser()), output)


@app.command()
def methods(
    name: Annotated[str, typer.Argument(help="One method, for all about it; default: all.")] = "",
) -> None:
    """List the merge methods: what each needs, what leaves a site, and its settings.

    Example: `layerweld methods` or `layerweld methods ties+lines`
    """
    from layerweld.cli.method_details import method_details
    from layerweld.cli.method_table import method_table
    from layerweld.runtime.terminal import console
    from layerweld.settings.methods import method_named
    from layerweld.settings.run import RunSettings

    console.print(method_details(method_named(name, RunSettings())) if name else method_table())


@app.command()
def plan(base: Base) -> None:
    """List a model's layer groups, and what each costs in bytes.

    Example: `layerweld plan path/to/model`
    """
    from layerweld.cli.plan_table import plan_table
    from layerweld.model.base_model import load_base
    from layerweld.model.discover import discover_plan
    from layerweld.runtime.terminal import console

    console.print(plan_table(discover_plan(load_base(base).backbone)))


def main() -> None:
    """Run a command; however it ends, that has an exit code, a cause and a next step."""
    run_and_end(app)


def _is_typed(context: typer.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _nodes(sites: list[str]) -> list[dict[str, Scalar]]:
    """One node configuration for each ``NAME=ADAPTER:DATA``."""
    from layerweld.settings.sites import site_entries

    entries = []
    for text in sites:
        name, equals, rest = text.partition("=")
        adapter, colon, data = rest.partition(":")
        if not (name and equals and adapter and colon and data):
            raise typer.BadParameter(f"{text!r} is not NAME=ADAPTER:DATA", param_hint="--site")
        entries.append({"name": name, "adapter": adapter, "data": data})
    checked = site_entries(entries, Path("--site"))
    return [site.node_config() for site in checked]


def _play(settings: RunSettings, nodes: Nodes, base: str, output: Path) -> None:
    from layerweld.cli.in_process import run_in_process
    from layerweld.report.run.tables import accuracy_table
    from layerweld.runtime.terminal import console, showing_progress

    with showing_progress():
        results = run_in_process(settings, nodes, base, output)
    if any(method.scores for method in results.methods):
        console.print(accuracy_table(results))
    for method in results.methods:
        for name, value in method.figures.items():
            console.print(f"{method.label}: {name} {value:.3g}", highlight=False)
    made = next(name for name in ("adapter", "model") if (output / name).is_dir())
    console.print(f"merged {made}  {output / made}", highlight=False)
    console.print(f"report         {output / 'report.html'}", highlight=False)
    console.print(f"manifest       {results.manifest_hash}", highlight=False)
