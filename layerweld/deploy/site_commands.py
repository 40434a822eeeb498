"""``layerweld site …``: what an organisation that brings data types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from layerweld.deploy.checks import Check
    from layerweld.deploy.site import Site
    from layerweld.settings.run import RunSettings

app = typer.Typer(
    suggest_commands=False,  # click suggests
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Join a federation as a site: data and models stay here.",
)

Folder = Annotated[Path, typer.Option("--folder", help="The site's folder.")]
Address = Annotated[str, typer.Argument(metavar="HOST:PORT", help="The coordinator's gateway.")]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--ca", help="Certificate to verify it with; default: ca.crt in the folder, if any."
    ),
]
HERE = Path()
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Flower colours its log for terminals


@app.command()
def init(
    site: Annotated[str, typer.Argument(help="Name of the site, and of its folder.")],
    model: Annotated[str, typer.Option(help="Folder of the base model.")],
    data: Annotated[str, typer.Option(help="Samples: .jsonl, .csv, .parquet, or an image folder.")],
    adapter: Annotated[str, typer.Option(help="PEFT folder, or fully fine-tuned model.")] = "",
    fine_tune: Annotated[
        bool, typer.Option("--fine-tune", help="Instead, train an adapter on the data here.")
    ] = False,
    held_out: Annotated[str, typer.Option(help="Labelled samples to evaluate on.")] = "",
    head: Annotated[str, typer.Option(help="The adapter's classifier, to evaluate with.")] = "",
    text_column: Annotated[
        str, typer.Option(help="Column with the text; no run can name another.")
    ] = "",
    label_column: Annotated[
        str, typer.Option(help="Column with the label; no run can name another.")
    ] = "",
    logger: Annotated[
        str, typer.Option(help="Training curves: tensorboard, csv, mlflow, wandb or none.")
    ] = "",
    min_samples: Annotated[
        int | None,
        typer.Option(
            help="Never measure, train or evaluate on fewer samples, whatever a run says."
        ),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="The coordinator's run.toml, to check with its settings.")
    ] = None,
) -> None:
    """Check model, adapter and data; make a key and a folder; say what would be sent.

    Example: `layerweld site init hospital-a --model models/b --adapter lora --data notes.jsonl`
    """
    from layerweld.deploy.egress import egress_lines, measure
    from layerweld.deploy.site import create, site_entry
    from layerweld.deploy.speak import say
    from layerweld.errors import DeployError
    from layerweld.runtime.terminal import showing_progress
    from layerweld.untrusted.documents import MOST_BYTES
    from layerweld.untrusted.files import contents, named_path

    if bool(adapter) == fine_tune:
        raise typer.BadParameter("give either --adapter, or --fine-tune to train one here")
    folder = named_path(site, "SITE", DeployError, Path.cwd())
    if folder.exists():
        raise DeployError(f"{folder} exists already; choose another name, or remove it")
    paths = {"base": model, "data": data, "adapter": adapter, "head": head, "held_out": held_out}
    words = {"text_column": text_column, "label_column": label_column, "logger": logger}
    entry = site_entry(site, Path.cwd(), min_samples, words, **paths)
    with showing_progress():
        egress = measure(entry, _settings(settings))
    run_file = contents(settings, DeployError, MOST_BYTES) if settings else b""
    made, fingerprint = create(folder, entry, run_file)
    for line in egress_lines(egress, entry):
        say(line)
    if settings is None:
        say("note         a run's own settings may send more: give its run.toml as --settings")
    say(f"key          {fingerprint}  in {made.key}, readable by you alone")
    say(f"now          send {made.public_key} to the coordinator, put their ca.crt into {folder}")


@app.command()
def check(address: Address, folder: Folder = HERE, ca: Authority = None) -> None:
    """Look for problems that could keep the site from joining, and say what to do about each.

    Example: `layerweld site check fl.example.org:8443`
    """
    from layerweld.deploy.checks import check_coordinator, disk, gpu
    from layerweld.deploy.egress import measure
    from layerweld.deploy.site import open_site
    from layerweld.errors import DeployError
    from layerweld.runtime.terminal import showing_progress

    site = open_site(folder)
    found = check_coordinator(address, _authority(site, ca))
    with showing_progress():
        needed = measure(site.entry, _settings(site.run_file)).cache_bytes
    found.append(disk(site.cache, needed))
    found.append(gpu())
    for one in found:
        _say_check(one)
    if amiss := [one for one in found if one.remedy]:
        raise DeployError(f"{amiss[0].name}: {amiss[0].found}; {amiss[0].remedy}")


@app.command()
def join(
    address: Address,
    folder: Folder = HERE,
    ca: Authority = None,
    service: Annotated[
        bool, typer.Option("--service", help="Write a systemd unit instead of joining now.")
    ] = False,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print Flower's command, and do nothing.")
    ] = False,
) -> None:
    """Connect and serve runs until Ctrl-C; restart what dies. Only this application runs.

    Example: `layerweld site join fl.example.org:8443`
    """
    from layerweld.deploy.application import application_hash
    from layerweld.deploy.checks import parse_address, skew
    from layerweld.deploy.ports import free_port
    from layerweld.deploy.processes import Supervisor
    from layerweld.deploy.site import joined, open_site
    from layerweld.deploy.speak import print_commands, say
    from layerweld.errors import DeployError

    site = open_site(folder)
    parse_address(address)
    authority = _authority(site, ca)
    if service:
        _write_unit(site, address, authority)
        return
    supernode = site.supernode(address, authority, free_port())
    if only_print:
        print_commands(supernode.environment, supernode.command)
        return
    if trouble := skew(address, authority):
        raise DeployError(trouble)
    with joined(site):
        application = application_hash()
        site.pin(application)
        say(f"site {site.entry.name} runs application {application[:12]} and no other")
        Supervisor([supernode], site.logs, say).run()


@app.command()
def status(folder: Folder = HERE) -> None:
    """Show whether the site has joined, the size of its cache, and what it was asked and sent last.

    Example: `layerweld site status`
    """
    from layerweld.deploy.keys import fingerprint, read_public_key
    from layerweld.deploy.site import bytes_in, is_joined, open_site
    from layerweld.deploy.speak import say
    from layerweld.errors import DeployError
    from layerweld.runtime.incidents import REPLIES
    from layerweld.untrusted.files import last_lines

    site = open_site(folder)
    state = "joined" if is_joined(site) else "not joined"
    say(f"site   {site.entry.name}, {state}")
    say(f"key    {fingerprint(read_public_key(site.public_key))}")
    say(f"cache  {bytes_in(site.cache) / 2**20:,.1f} MiB in {site.cache}")
    for word, log in (
        ("asked", site.cache / "logs" / REPLIES),
        ("log", site.logs / "supernode.log"),
    ):
        for line in last_lines(log, 5, DeployError):
            say(f"{word:6} {_COLOUR.sub('', line)}")


@app.command()
def purge(
    folder: Folder = HERE,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Also delete adapters that were trained here.")
    ] = False,
) -> None:
    """Delete what runs have left in the cache. This site then starts an interrupted run anew.

    Example: `layerweld site purge --adapters`
    """
    from layerweld.deploy.site import open_site
    from layerweld.deploy.site import purge as delete
    from layerweld.deploy.speak import say

    say(f"freed {delete(open_site(folder), adapters=adapters) / 2**20:,.1f} MiB")


def _settings(file: Path | None) -> RunSettings:
    from layerweld.deploy.files import read_toml
    from layerweld.settings.run import RunSettings, validate_settings

    if file is None:
        return RunSettings()
    return validate_settings(read_toml(file, "layerweld coordinator init"), file)


def _authority(site: Site, chosen: Path | None) -> Path | None:
    from layerweld.errors import DeployError
    from layerweld.untrusted.files import named_path

    if chosen is None:
        return site.authority if site.authority.is_file() else None
    file = named_path(chosen, "--ca", DeployError)
    if not file.is_file():
        raise DeployError(f"{file} does not exist; it is the coordinator's ca.crt")
    return file


def _write_unit(site: Site, address: str, authority: Path | None) -> None:
    from layerweld.deploy.files import write_whole
    from layerweld.deploy.speak import say
    from layerweld.deploy.units import how_to_install, unit

    arguments = ["site", "join", address, "--folder", str(site.folder)]
    if authority is not None:
        arguments += ["--ca", str(authority)]
    file = site.folder / f"layerweld-site-{site.entry.name}.service"
    text = unit(f"layerweld site {site.entry.name}", arguments, site.folder)
    write_whole(file, text.encode())
    say(f"unit     {file}")
    say(f"install  {how_to_install(file)}")


def _say_check(found: Check) -> None:
    from layerweld.deploy.speak import say

    mark = "no" if found.remedy else "ok"
    say(f"{mark}  {found.name:12}  {found.found}")
    if found.remedy:
        say(f"    {'':12}  -> {found.remedy}")
