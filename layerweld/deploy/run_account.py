"""What the runs of a coordinator say about themselves, for people to read."""

from __future__ import annotations

from collections.abc import Iterator

from layerweld.deploy.coordinator import Coordinator
from layerweld.deploy.members import naming_nodes
from layerweld.deploy.runs import has_journal
from layerweld.runtime.run_state import RunState, read_state


def account(coordinator: Coordinator) -> Iterator[str]:
    """Lines about every run that left a state: how far it is, whom it waits for, how it ended.

    The SuperLink is not asked, so this works while it is down.

    Raises:
        JournalError: a state cannot be read.
    """
    named = naming_nodes(coordinator)
    for folder in sorted(path for path in coordinator.runs.iterdir() if path.is_dir()):
        state = read_state(folder)
        if state is not None:
            again = "resume" if has_journal(folder) else "run"
            yield from map(named, _lines(folder.name, state, again))


def _lines(name: str, state: RunState, again: str) -> Iterator[str]:
    code = "" if state.exit_code is None else f", exit code {state.exit_code}"
    done = f"{state.what}, {state.done} of {state.total}" if state.total else state.what
    yield f"state {name:20}  {state.status}{code}  {done}  {state.updated}"
    if state.status == "running":
        for site, why in state.waiting.items():
            yield f"  waiting for {site}: {why or 'no reply yet'}"
    for note in state.notes:
        yield f"  note: {note}"
    if state.exit_code:
        yield f"  cause: {state.cause}"
        yield f"  next: {state.next_step}"
        yield f"  then: layerweld coordinator {again} --name {name}"
