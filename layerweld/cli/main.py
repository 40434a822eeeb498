"""The command line: look at a plan, merge folders, simulate sites, see the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerweld.cli import compare_commands
from layerweld.deploy import coordinator_commands, site_commands
from layerweld.runtime.endings import run_and_end

if TYPE_CHECKING:
    from layerweld.cli.in_process import Nodes
    from layerweld.settings.run import RunSettings, Scalar

app = typer.Typer(
    suggest_commands=False,  # click suggests
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Federated model merging: merge what several sites fine-tuned, without moving their data.",
)

app.add_typer(coordinator_commands.app, name="coordinator")
app.add_typer(site_commands.app, name="site")

Base = Annotated[Path, typer.Argument(help="Folder of the base model (transformers).")]
Output = Annotated[Path, typer.Option(help="Folder to create. An interrupted run resumes.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]


@app.command()
def demo(
    output: Output = Path("demo-output"),
    seed: Seed = 0,
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated; the first one's merge is written out. Default: the file's."
        ),
    ] = "",
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Write the files, say where they are, and stop.")
    ] = False,
) -> None:
    """Six sites, six real text tasks: fine-tune, merge, evaluate, report.

    Writes the sites' samples and a `run.toml` into your cache folder, and simulates that.

    Example: `layerweld demo --output demo-output`
    """
    from layerweld.demo.federation import demo_file, flower_config

    file = demo_file(seed)
    if prepare_only:
        typer.echo(f"run file    {file}\nrun-config  {flower_config(file, seed)}")
        return
    _simulate(file, output, methods)


@app.command()
def simulate(
    config: Annotated[Path, typer.Argument(help="TOML file with settings and [[sites]].")],
    output: Annotated[
        Path | None, typer.Option(help="Folder to create; default: the file's `output`.")
    ] = None,
) -> None:
    """Run a federation of your own sites, model and data in this process.

    Example: `layerweld simulate hospitals.toml --output merged`
    """
    _simulate(config, output)


app.command()(compare_commands.compare)
app.command()(compare_commands.compare_runs)


@app.command()
def merge(
    base: Base,
    site: Annotated[
        list[str],
        typer.Option(help="NAME=ADAPTER:DATA, once per site: a PEFT folder, and its data."),
    ],
    output: Output,
    base_name: Annotated[
        str | None, typer.Option(help="What cards call the base model; default: its folder's name.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="One of `layerweld methods`; default: the chain.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY=VALUE of the method's settings, or TABLE.KEY=VALUE of any other table; "
            "any number of times.",
        ),
    ] = None,
    ridge: Annotated[
        float | None, typer.Option(help="Of a chain: λ as a fraction of mean(diag S).")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Compress the merge to this rank; default: exact.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens after which a text is cut.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per forward pass.")] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples to draw per site; default: all, in order.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    covariate_shift: Annotated[
        bool, typer.Option("--covariate-shift", help="Measure eq. 8 per group and site.")
    ] = False,
) -> None:
    """Merge local PEFT adapters, each with samples of its own kind of data.

    All other settings have their defaults, as `docs/settings.md` lists them, unless `--set` says
    otherwise: samples with their text in another column need `--set calibration.text-column=body`.

    Example: `layerweld merge base --site a=adapters/a:a.jsonl --site b=adapters/b:b.csv --output
    merged --method ties --set density=0.1`
    """
    from layerweld.settings.overrides import with_overrides
    from layerweld.settings.run import read_run_settings
    from layerweld.untrusted.names import is_name

    options: dict[str, Scalar | None] = {
        "base-name": base_name,
        "methods": method,
        "merge.ridge": ridge,
        "merge.rank": rank,
        "merge.covariate-shift": "first" if covariate_shift else None,
        "calibration.max-length": max_length,
        "calibration.batch-size": batch_size,
        "calibration.samples": samples,
        "calibration.seed": seed,
    }
    typed = {key: value for key, value in options.items() if value is not None}
    name = output.name if is_name(output.name) else "merge"
    own: dict[str, Scalar] = {"base": str(base.expanduser()), "name": name, "min-sites": len(site)}
    settings = read_run_settings(own | typed)
    given = {key: f"--{key.partition('.')[2]}" for key in typed if "." in key}
    settings = with_overrides(settings, settings.methods, set_ or [], given)
    _run(settings, _nodes(site), output)


@app.command()
def methods(
    name: Annotated[str, typer.Argument(help="One method, for everything about it.")] = "",
) -> None:
    """List the merge methods: what each needs, what leaves a site, and its settings.

    Example: `layerweld methods` or `layerweld methods ties+lines`
    """
    from layerweld.cli.methods import method_details, method_table
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


def _simulate(config: Path, output: Path | None, methods: str = "") -> None:
    """Run a run file's sites; ``methods``, where given, instead of the file's."""
    from layerweld.settings.sites import read_run_file

    settings, sites = read_run_file(config)
    changes = {"min_sites": len(sites), "methods": methods or settings.methods}
    settings = settings.model_copy(update=changes)
    nodes = [site.node_config() for site in sites]
    _run(settings, nodes, output or Path(settings.output or f"runs/{settings.name}"))


def _run(settings: RunSettings, nodes: Nodes, output: Path) -> None:
    from layerweld.cli.in_process import run_in_process
    from layerweld.report.run.tables import site_accuracy_table
    from layerweld.runtime.terminal import console, showing_progress

    with showing_progress():
        results = run_in_process(settings, nodes, output)
    if any(method.scores for method in results.methods):
        console.print(site_accuracy_table(results))
    for method in results.methods:
        for name, value in method.metrics.items():
            console.print(f"{method.label}: {name} {value:.3g}", highlight=False)
    console.print(f"merged {results.form}  {output / results.form}", highlight=False)
    console.print(f"report         {output / 'report.html'}", highlight=False)
    console.print(f"manifest       {results.manifest_hash}", highlight=False)
