"""What ``state.json`` says while a run goes on, and however it ends."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from typer.testing import CliRunner

from client.app import app as client_app
from layerweld import errors
from layerweld.cli import main as cli
from layerweld.errors import JournalError, LayerweldError, LostSiteError
from layerweld.report.results import RunResults
from layerweld.runtime.disk import holding_lock, lock_of
from layerweld.runtime.progress import listening, report_progress
from layerweld.runtime.run_state import RunState, read_state, recording
from server.app import app as server_app
from server.in_process import InProcessGrid
from server.run import run as run_server
from strategies import poll
from tests.faulty_grid import Clock, Faults, FaultyGrid, from_the_node
from tests.stub_sites import step_of
from tests.tiny_sites import TinySites

DOCUMENT = Path(__file__).parents[1] / "docs/exit-codes.md"
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def run(
    sites: TinySites,
    output: Path,
    grid: "CedarIsSilent | InProcessGrid | None" = None,
    **changes: Any,
) -> RunResults:
    settings = sites.settings().model_copy(update=changes)
    return run_server(grid or sites.grid(settings), settings, str(sites.base), output)


def run_in_flower(
    sites: TinySites, output: Path, nodes: list[dict[str, str]] | None = None
) -> None:
    """As Flower starts it: nobody sees what the process says."""
    from flwr.app import Context, RecordDict

    settings = sites.settings().model_copy(update={"output": str(output)})
    grid = InProcessGrid(client_app, nodes or sites.nodes, settings)
    context = Context(1, 1, {}, RecordDict(), dict(settings.flat()))
    server_app(grid, context)


class CedarIsSilent(FaultyGrid):
    """One site's process dies whenever it is asked for statistics at the second step."""

    def _answer(self, message: Message) -> Message:
        asked = message.metadata.message_type == "train.statistics"
        if asked and message.metadata.dst_node_id == 3 and step_of(message) == 1:
            return from_the_node(message, 8)
        return super()._answer(message)


def without_cedar(
    sites: TinySites, output: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> RunResults:
    clock = Clock()
    monkeypatch.setattr(poll, "time", clock)
    settings = sites.settings().model_copy(update=changes)
    grid = CedarIsSilent(client_app, sites.nodes, settings, Faults(0, rate=0.0), clock)
    return run(sites, output, grid, **changes)


def state_in(output: Path) -> RunState:
    state = read_state(output)
    assert state
    return state


def test_a_finished_run_is_completed_with_exit_code_0(sites: TinySites, tmp_path: Path) -> None:
    run(sites, tmp_path / "out")
    state = state_in(tmp_path / "out")
    assert (state.status, state.exit_code, state.cause) == ("completed", 0, "")
    assert dict(state.waiting) == {}


def test_a_run_that_goes_on_says_which_step_it_is_at_and_whom_it_waits_for(
    sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(_what: Any, _done: Any, _total: Any) -> None:
        state = read_state(tmp_path / "out")
        if state and state.waiting:
            seen.append((state.status, state.what, state.done, state.total, dict(state.waiting)))

    with listening(look), pytest.raises(LostSiteError):
        without_cedar(sites, tmp_path / "out", monkeypatch, deadline=60.0)
    assert ("running", "Chain of Merges", 1, 2, {"cedar": "its process died"}) in seen


def test_a_run_that_stops_at_the_deadline_says_who_was_missing_and_what_to_do(
    sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LostSiteError):
        without_cedar(sites, tmp_path / "out", monkeypatch, deadline=60.0)
    state = state_in(tmp_path / "out")
    assert (state.status, state.exit_code) == ("failed", LostSiteError.exit_code)
    assert "cedar: its process died" in state.cause
    assert state.next_step == LostSiteError.next_step
    assert dict(state.waiting) == {"cedar": "its process died"}
    assert run(sites, tmp_path / "out")
    assert state_in(tmp_path / "out").status == "completed"


def test_a_refused_run_in_flower_leaves_its_cause_and_in_one_process_it_leaves_nothing(
    sites: TinySites, tmp_path: Path
) -> None:
    twins = [sites.nodes[0], sites.nodes[1] | {"name": "ash"}, sites.nodes[2]]
    with pytest.raises(LayerweldError) as refused:
        run_in_flower(sites, tmp_path / "flower", twins)
    state = state_in(tmp_path / "flower")
    assert (state.status, state.exit_code) == ("failed", refused.value.exit_code)
    assert state.cause == str(refused.value)
    run_in_flower(sites, tmp_path / "flower")
    assert state_in(tmp_path / "flower").status == "completed"
    settings = sites.settings()
    grid = InProcessGrid(client_app, twins, settings)
    with pytest.raises(LayerweldError):
        run(sites, tmp_path / "here", grid)
    assert not (tmp_path / "here").exists()


def test_a_killed_run_is_told_from_one_that_goes_on(sites: TinySites, tmp_path: Path) -> None:
    output = tmp_path / "out"
    child = os.fork()
    if child == 0:
        with listening(lambda what, done, _: kill() if (what, done) == KILL_AT else None):
            run(sites, output)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    state = state_in(output)
    assert (state.status, state.exit_code, state.done) == ("died", 15, 1)
    assert "was killed" in state.cause
    with holding_lock(lock_of(output), "out"):
        assert state_in(output).status == "running"
    run(sites, output)
    assert state_in(output).status == "completed"


KILL_AT = ("Chain of Merges", 1)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "error",
    [*(kind("what went wrong") for kind in KINDS), KeyboardInterrupt(), ValueError("x\ny")],
    ids=lambda error: type(error).__name__,
)
def test_every_end_has_a_code_of_the_document_one_line_of_cause_and_a_next_step(
    error: Any, tmp_path: Path
) -> None:
    with pytest.raises(type(error)), recording(tmp_path):
        raise error
    state = state_in(tmp_path)
    codes = {
        line.split("|")[1].strip() for line in DOCUMENT.read_text().splitlines() if "|" in line
    }
    assert str(state.exit_code) in codes
    assert state.status == "failed"
    assert state.cause
    assert "\n" not in state.cause
    assert state.next_step
    if isinstance(error, LayerweldError):
        assert state.exit_code == error.exit_code


def test_of_the_same_work_every_percent_is_written_and_not_every_batch(tmp_path: Path) -> None:
    times = []
    with recording(tmp_path) as recorder:
        write = recorder.write

        def writing(state: RunState) -> None:
            times.append(state.done)
            write(state)

        recorder.write = writing  # type: ignore[method-assign]
        for batch in range(1001):
            report_progress("fine-tuning", batch, 1000)
    assert times == list(range(0, 1001, 10))


def test_warnings_are_kept_until_the_work_moves_on(tmp_path: Path) -> None:
    with recording(tmp_path):
        report_progress("Chain of Merges", 1, 24)
        report_progress("warning: few tokens", 0, 0)
        state = state_in(tmp_path)
        assert (state.what, state.done, state.notes) == (
            "Chain of Merges", 1, ("warning: few tokens",),
        )  # fmt: skip
        report_progress("Chain of Merges", 2, 24)
        assert state_in(tmp_path).notes == ()


def test_a_damaged_state_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"status": "run')
    with pytest.raises(JournalError, match=r"state\.json cannot be read"):
        read_state(tmp_path)


def test_no_state_is_no_run(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None


def test_the_coordinator_shows_every_run_also_while_its_superlink_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lw = CliRunner()
    init = ["coordinator", "init", "fed", "--host", "localhost", "--port", "18443"]
    assert lw.invoke(cli.app, init).exit_code == 0
    runs = tmp_path / "fed/runs"
    failed = RunState(
        "failed", "Chain of Merges", 3, 24, {"north": "its process died"}, (), 8,
        "no answer from north", "start it again",
    )  # fmt: skip
    for name, state in {"one": failed, "two": RunState("completed", exit_code=0)}.items():
        (runs / name / "journal").mkdir(parents=True)
        (runs / name / "state.json").write_text(json.dumps(vars(state)))
    said = lw.invoke(cli.app, ["coordinator", "status", "--folder", "fed"]).output
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[:4] == [
        "state one failed, exit code 8 Chain of Merges, 3 of 24",
        "cause: no answer from north",
        "next: start it again",
        "then: layerweld coordinator resume --name one",
    ]
    assert lines[4] == "state two completed, exit code 0 starting"
