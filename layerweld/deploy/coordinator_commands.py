"""``layerweld coordinator …``: what the organisation that merges types."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from layerweld.deploy.coordinator import Coordinator
    from layerweld.settings.run import RunSettings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Run the coordinator of a federation: the server that merges, and never gets data.",
)

Folder = Annotated[Path, typer.Option("--folder", help="The coordinator's folder.")]
Print = Annotated[bool, typer.Option("--print", help="Print Flower's command, and do nothing.")]
RunName = Annotated[
    str, typer.Option("--name", help="Name of the run and its folder; default: `name` in run.toml.")
]
HERE = Path()


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the federation, and of its folder.")],
    host: Annotated[str, typer.Option(help="Name or address under which sites reach this host.")],
    port: Annotated[int, typer.Option(help="Port that sites reach.")] = 8443,
    superlink_port: Annotated[
        int, typer.Option(help="Loopback port of Flower's SuperLink; 0: the next one.")
    ] = 0,
    bind: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    base: Annotated[str, typer.Option(help="Folder of the base model.")] = "",
    certificate: Annotated[
        Path | None, typer.Option(help="Your organisation's own server certificate, with chain.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    authority: Annotated[Path | None, typer.Option(help="What sites verify it with.")] = None,
) -> None:
    """Make a coordinator's folder: settings, certificates, a systemd unit.

    Example: `layerweld coordinator init radiology --host fl.example.org --base models/b`
    """
    from layerweld.deploy.coordinator import OwnCertificate, check_file, create, unit_name
    from layerweld.deploy.speak import say
    from layerweld.deploy.units import how_to_install

    given = (certificate, key, authority)
    if any(given) and not all(given):
        raise typer.BadParameter("give --certificate, --key and --authority together, or none")
    own = OwnCertificate(certificate, key, authority) if certificate and key and authority else None
    file = check_file(
        name=name, host=host, port=port, superlink_port=superlink_port or port + 1, bind=bind
    )
    made = create(Path.cwd(), file, base, own)
    say(f"made        {made.folder}")
    say(f"settings    {made.folder / 'run.toml'}: check `base` and `min-sites`, give sites a copy")
    say(f"sites need  {made.authority}, and the address {host}:{port}")
    say(f"start       cd {shlex.quote(name)} && layerweld coordinator up")
    say(f"at boot     {how_to_install(made.folder / unit_name(file))}")


@app.command()
def up(folder: Folder = HERE, only_print: Print = False) -> None:
    """Run SuperLink, SuperExec and the gateway for sites until Ctrl-C; restart what dies.

    Example: `layerweld coordinator up --folder radiology`
    """
    from layerweld.deploy.coordinator import open_coordinator
    from layerweld.deploy.ports import require_free
    from layerweld.deploy.processes import Supervisor
    from layerweld.deploy.speak import print_commands, say
    from layerweld.deploy.validity import require_alive, tend
    from layerweld.runtime.disk import holding_lock

    coordinator = open_coordinator(folder)
    programs = coordinator.programs()
    if only_print:
        commands = [program.command for program in programs]
        print_commands(coordinator.environment, *commands)
        return
    with holding_lock(coordinator.folder / "up.lock", str(coordinator.folder)):
        tend(coordinator, say)
        require_alive(coordinator)
        require_free("127.0.0.1", coordinator.file.superlink_port)
        require_free(coordinator.file.bind, coordinator.file.port)
        supervisor = Supervisor(
            programs, coordinator.folder / "logs", say, lambda: tend(coordinator, say)
        )
        supervisor.run()


@app.command()
def add(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    key: Annotated[Path, typer.Argument(help="The site's public key, NAME.pub.")],
    folder: Folder = HERE,
    only_print: Print = False,
) -> None:
    """Register a site's public key. Compare its fingerprint with the site by telephone.

    Example: `layerweld coordinator add hospital-a hospital-a.pub`
    """
    from layerweld.deploy.coordinator import open_coordinator
    from layerweld.deploy.members import add_member, registration
    from layerweld.deploy.speak import print_commands, say

    coordinator = open_coordinator(folder)
    if only_print:
        print_commands(coordinator.environment, registration(key))
        return
    member = add_member(coordinator, site, key)
    say(f"registered {member.name}  {member.key}  node {member.node}")


@app.command()
def remove(
    site: Annotated[str, typer.Argument(help="Name of the site.")], folder: Folder = HERE
) -> None:
    """Withdraw a site's key; its SuperNode can no longer connect.

    Example: `layerweld coordinator remove hospital-a`
    """
    from layerweld.deploy.coordinator import open_coordinator
    from layerweld.deploy.members import remove_member
    from layerweld.deploy.speak import say

    member = remove_member(open_coordinator(folder), site)
    say(f"removed {member.name}  {member.key}")


@app.command()
def renew(
    folder: Folder = HERE,
    certificate: Annotated[
        Path | None, typer.Option(help="Your organisation's new server certificate, with chain.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    authority: Annotated[
        Path | None, typer.Option(help="What sites verify it with, if that has changed.")
    ] = None,
) -> None:
    """Sign new server certificates; sites keep theirs. Then start `up` again.

    If your organisation signs elsewhere, give the new one with `--certificate` and `--key`.

    Example: `layerweld coordinator renew`
    """
    from layerweld.deploy.coordinator import OwnCertificate, install_own, open_coordinator
    from layerweld.deploy.speak import say
    from layerweld.deploy.validity import is_own
    from layerweld.deploy.validity import renew as renew_certificates
    from layerweld.errors import DeployError

    coordinator = open_coordinator(folder)
    if certificate and key:
        if is_own(coordinator):
            raise DeployError(
                f"{coordinator.folder} has an authority of its own, which sites trust; make a new "
                f"folder with `layerweld coordinator init` to use your organisation's"
            )
        own = OwnCertificate(certificate, key, authority or coordinator.authority)
        install_own(coordinator.authority.parent, coordinator.file, own)
    elif certificate or key or authority:
        raise typer.BadParameter("give --certificate and --key together, or none")
    for line in renew_certificates(coordinator):
        say(line)
    say("stop `layerweld coordinator up` and start it again; a run continues by itself")


@app.command()
def run(folder: Folder = HERE, name: RunName = "", only_print: Print = False) -> None:
    """Start a run and follow it to its end; exit code 0 if it completed. Ctrl-C stops following.

    Example: `layerweld coordinator run --name radiology-2`
    """
    from layerweld.deploy.runs import output_of, run_command, start_run
    from layerweld.deploy.speak import print_commands, say

    coordinator, settings = _open(folder, name)
    if only_print:
        print_commands(coordinator.environment, run_command(coordinator, settings))
        return
    _warn(coordinator)
    run_id = start_run(coordinator, settings)
    say(f"run {run_id} started, into {output_of(coordinator, settings)}")
    _follow(coordinator, settings, run_id)


@app.command()
def status(folder: Folder = HERE) -> None:
    """Show how far each run is or how it ended, and which sites are registered and connected.

    Example: `layerweld coordinator status`
    """
    from layerweld.deploy.coordinator import open_coordinator
    from layerweld.deploy.members import members, node_states
    from layerweld.deploy.run_account import account
    from layerweld.deploy.runs import list_runs
    from layerweld.deploy.speak import say

    coordinator = open_coordinator(folder)
    _warn(coordinator)
    for line in account(coordinator):
        say(line)
    states = node_states(coordinator)
    if not members(coordinator):
        say("no site is registered; `layerweld coordinator add SITE KEY.pub` does that")
    for member in members(coordinator):
        say(f"site {member.name:20}  {states.get(member.node, 'unknown'):10}  {member.key}")
    for state in list_runs(coordinator):
        say(f"run  {state.run_id:20}  {state.status}  {state.elapsed}  {state.details}")


@app.command()
def resume(folder: Folder = HERE, name: RunName = "") -> None:
    """Follow the run that is under way, or resume an interrupted one after its last step.

    Example: `layerweld coordinator resume`
    """
    from layerweld.deploy.runs import active_run, has_journal, output_of, start_run
    from layerweld.deploy.speak import say
    from layerweld.errors import DeployError

    coordinator, settings = _open(folder, name)
    _warn(coordinator)
    run_id = active_run(coordinator)
    if run_id is None:
        output = output_of(coordinator, settings)
        if not has_journal(output):
            raise DeployError(
                f"{output} holds no interrupted run; start one with `layerweld coordinator run`"
            )
        run_id = start_run(coordinator, settings)
    say(f"run {run_id}")
    _follow(coordinator, settings, run_id)


@app.command()
def stop(folder: Folder = HERE) -> None:
    """Stop the run that is under way; `resume` continues it.

    Example: `layerweld coordinator stop`
    """
    from layerweld.deploy.coordinator import open_coordinator
    from layerweld.deploy.runs import stop_run
    from layerweld.deploy.speak import say

    say(f"stopped run {stop_run(open_coordinator(folder))}")


@app.command()
def report(folder: Folder = HERE, name: RunName = "") -> None:
    """Say where a finished run's report and merge are, and its manifest's hash.

    Example: `layerweld coordinator report`
    """
    _report(*_open(folder, name))


def _open(folder: Path, name: str) -> tuple[Coordinator, RunSettings]:
    from layerweld.deploy.coordinator import open_coordinator

    coordinator = open_coordinator(folder)
    return coordinator, coordinator.settings(name)


def _warn(coordinator: Coordinator) -> None:
    """Warn of certificates that have expired, or will within a month."""
    from layerweld.deploy.speak import say
    from layerweld.deploy.validity import warnings_of

    for line in warnings_of(coordinator):
        say(f"warning: {line}")


def _follow(coordinator: Coordinator, settings: RunSettings, run_id: str) -> None:
    from layerweld.deploy.runs import follow_run, output_of
    from layerweld.deploy.speak import say
    from layerweld.runtime.interruptions import INTERRUPTED, Left

    try:
        follow_run(coordinator, run_id, output_of(coordinator, settings), say)
    except (KeyboardInterrupt, SystemExit) as end:
        code = end.code if isinstance(end, SystemExit) else 130
        if code not in INTERRUPTED:
            raise
        goes_on = "the run continues; `layerweld coordinator resume` follows it again"
        raise Left(code, goes_on) from None
    _report(coordinator, settings)


def _report(coordinator: Coordinator, settings: RunSettings) -> None:
    from layerweld.deploy.runs import finished_manifest, output_of
    from layerweld.deploy.speak import say

    output = output_of(coordinator, settings)
    manifest = finished_manifest(output)
    made = next(name for name in ("adapter", "model") if (output / name).is_dir())
    say(f"merged {made}  {output / made}")
    say(f"report         {output / 'report.html'}")
    say(f"manifest       {manifest}")
