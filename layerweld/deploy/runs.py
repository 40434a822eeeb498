"""Start a run at a coordinator, follow it to its final state, and say how it ended."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerweld.deploy.coordinator import CONNECTION, Coordinator
from layerweld.deploy.files import write_toml
from layerweld.deploy.flower import ask, flwr, show_log
from layerweld.deploy.members import naming_nodes
from layerweld.errors import DeployError, RunFailedError
from layerweld.runtime.app_path import app_folder
from layerweld.settings.run import RunSettings
from layerweld.untrusted.documents import MOST_BYTES
from layerweld.untrusted.files import add_to_hash

_LOOK = 4.0  # seconds between two looks at a run's state; each starts `flwr` anew
_PATIENCE = 300.0  # seconds for which the SuperLink may be away while a run is followed
_LOOK_AT_LOG = 30.0  # seconds between two looks at what a run has logged
_JOURNAL = "journal"
_NOTICES = re.compile(r"(?<!\w)(?:waiting for|going on without|solved|warning:) [^\x1b\n]+")


@dataclass(frozen=True)
class RunState:
    """One run as the SuperLink lists it.

    Attributes:
        run_id: Flower's number.
        status: ``pending``, ``starting``, ``running``, or ``finished:…``.
        details: what Flower says about a run that did not complete.
        elapsed: since it started, with its unit.
        application: SHA-256 of the bundle that the run distributes.
    """

    run_id: str
    status: str
    details: str
    elapsed: str
    application: str

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self.status.startswith("finished")


def list_runs(coordinator: Coordinator) -> list[RunState]:
    """Every run the SuperLink knows, newest first.

    Raises:
        DeployError: the SuperLink does not respond.
    """
    runs: list[dict[str, Any]] = ask(flwr("list", CONNECTION), coordinator.environment)["runs"]
    return [
        RunState(
            run["run-id"],
            run["status"],
            ""
            if run["status-details"] in (None, "N/A")
            else " ".join(run["status-details"].split()),
            f"{float(run['elapsed']):.0f} s",
            run["fab-hash"] or "",
        )
        for run in runs
    ]


def output_of(coordinator: Coordinator, settings: RunSettings) -> Path:
    """The folder that a run writes to, by its name."""
    return coordinator.runs / settings.name


def run_command(coordinator: Coordinator, settings: RunSettings) -> list[str]:
    """The command that submits a run; its settings are written into a file of their own."""
    output = output_of(coordinator, settings)
    full = settings.model_copy(update={"output": str(output)})
    file = coordinator.runs / f"{settings.name}.toml"
    write_toml(file, full.model_dump(by_alias=True), "What `flwr run` was given.")
    return flwr("run", str(app_folder()), CONNECTION, "--run-config", str(file))


def start_run(coordinator: Coordinator, settings: RunSettings) -> str:
    """Submit a run, and return Flower's number for it.

    Raises:
        DeployError: another run is active, this one has finished before, or the SuperLink does
            not respond.
    """
    active = [run for run in list_runs(coordinator) if not run.is_final]
    if active:
        raise DeployError(
            f"run {active[0].run_id} is {active[0].status}; `layerweld coordinator resume` follows "
            f"it, `layerweld coordinator stop` ends it"
        )
    if (output_of(coordinator, settings) / "manifest.json").is_file():
        raise DeployError(
            f"{output_of(coordinator, settings)} holds a finished run; give `--name` another name, "
            f"or look at it with `layerweld coordinator report`"
        )
    started = ask(run_command(coordinator, settings), coordinator.environment)
    return str(started["run-id"])


def follow_run(
    coordinator: Coordinator, run_id: str, output: Path, say: Callable[[str], None]
) -> None:
    """Wait for a run's final state; say which groups are solved and which sites it waits for.

    Raises:
        RunFailedError: it did not complete; the message has the cause and the next command.
    """
    solved, next_log = 0, time.monotonic() + _LOOK_AT_LOG
    notices = _Notices(coordinator, run_id, say)
    while not (state := _patiently(coordinator, run_id, say)).is_final:
        count = _kept_steps(output)
        if count > solved or time.monotonic() > next_log:
            solved = count
            notices.pass_on()
            next_log = time.monotonic() + _LOOK_AT_LOG
        time.sleep(_LOOK)
    notices.pass_on()
    if state.status != "finished:completed":
        raise RunFailedError(naming_nodes(coordinator)(_failure(state, output)))


class _Notices:
    """Passes on what a run has logged for people, each line once."""

    def __init__(self, coordinator: Coordinator, run_id: str, say: Callable[[str], None]) -> None:
        self._coordinator = coordinator
        self._run_id = run_id
        self._say = say
        self._told = 0

    def pass_on(self) -> None:
        log = show_log(self._run_id, CONNECTION, self._coordinator.environment)
        lines, named = notices_in(log), naming_nodes(self._coordinator)
        for line in lines[self._told :]:
            self._say(named(line))
        self._told = max(self._told, len(lines))


def notices_in(log: str) -> list[str]:
    """What a run's log says about solved groups, and about sites waited for or given up."""
    return [line.strip() for line in _NOTICES.findall(log)]


def _patiently(coordinator: Coordinator, run_id: str, say: Callable[[str], None]) -> RunState:
    """A run's state. If the SuperLink is restarting, wait for it."""
    until, said = time.monotonic() + _PATIENCE, ""
    while True:
        try:
            return next(run for run in list_runs(coordinator) if run.run_id == run_id)
        except StopIteration:
            raise DeployError(
                f"the SuperLink does not know run {run_id}; was state.db removed?"
            ) from None
        except DeployError as error:
            if time.monotonic() > until:
                raise
            if str(error) != said:
                said = str(error)
                say(f"{said} Asking again for {_PATIENCE:.0f} s")
            time.sleep(_LOOK)


def active_run(coordinator: Coordinator) -> str | None:
    """Number of the run that is under way, if there is one."""
    return next((run.run_id for run in list_runs(coordinator) if not run.is_final), None)


def stop_run(coordinator: Coordinator) -> str:
    """Stop the run that is under way; what it has solved stays in its journal.

    Raises:
        DeployError: there is none.
    """
    run_id = active_run(coordinator)
    if run_id is None:
        raise DeployError("no run is under way; `layerweld coordinator status` lists them")
    ask(flwr("stop", run_id, CONNECTION), coordinator.environment)
    return run_id


def has_journal(output: Path) -> bool:
    """Whether an interrupted run can be resumed."""
    return (output / _JOURNAL).is_dir()


def finished_manifest(output: Path) -> str:
    """The manifest hash of a finished run.

    Raises:
        DeployError: there is none.
    """
    file = output / "manifest.json"
    if not file.is_file():
        hint = "resume" if has_journal(output) else "run"
        raise DeployError(f"{output} holds no finished run; type `layerweld coordinator {hint}`")
    digest = hashlib.sha256()
    add_to_hash(digest, file, DeployError, MOST_BYTES)
    return digest.hexdigest()


def _kept_steps(output: Path) -> int:
    return len(list((output / _JOURNAL).glob("*/*-*.safetensors")))


def _failure(state: RunState, output: Path) -> str:
    kept = f"; {_kept_steps(output)} solved steps or rounds are kept" if has_journal(output) else ""
    again = "resume" if has_journal(output) else "run"
    return (
        f"run {state.run_id} ended as {state.status}: {state.details or 'no reason given'}{kept}. "
        f"When that is fixed, type `layerweld coordinator {again} --name {output.name}`"
    )
