"""``state.json`` in a run's output folder: how far it is, whom it waits for, how it ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from layerweld.errors import UNFORESEEN, JournalError, LayerweldError, RunFailedError, StorageError
from layerweld.runtime.disk import is_held, lock_of, writing
from layerweld.runtime.interruptions import INTERRUPTED, RESUMES
from layerweld.runtime.progress import also_listening
from layerweld.untrusted.documents import read_json
from layerweld.untrusted.files import reading
from layerweld.untrusted.paths import refused_path
from layerweld.untrusted.text import shown

STATE = "state.json"
_NOTES = 10  # the last ones are kept
_LONGEST = 4000  # characters of a cause


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        status: ``died`` is never written: it is ``running`` in a folder that no process holds.
        what: what is being done; once the run has ended, what was done last.
        done: how much of that is done: steps, sites or batches.
        total: how much there is in total.
        waiting: sites whose reply is missing, each with its last failure; an empty text where
            nothing was heard.
        notes: warnings and failures since ``what`` last moved, the newest last.
        exit_code: as in ``docs/exit-codes.md``; None while the run is under way.
        cause: why the run ended as it did, in one line; empty if all is well.
        next_step: what to do then.
        updated: when this was written: UTC, ISO 8601.
    """

    status: Literal["running", "completed", "failed", "died"] = "running"
    what: str = "starting"
    done: int = 0
    total: int = 0
    waiting: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    exit_code: int | None = None
    cause: str = ""
    next_step: str = ""
    updated: str = ""


class Recorder:
    """Keeps the state file of a run that is under way; a listener of its progress.

    Args:
        folder: the run's output folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / STATE
        self._state = RunState()
        self._moved = ("", 0)
        self.waiting_for: Callable[[], Mapping[str, str]] = dict
        """The sites that are waited for, as in :attr:`RunState.waiting`; none until it is set."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Record what was reported: every percent of the same work, not every batch."""
        if total == 0:
            notes = (*self._state.notes, what)[-_NOTES:]
            self.write(replace(self._state, notes=notes))
            return
        moved = (what, 100 * done // total)
        if moved != self._moved:
            self._moved = moved
            self.write(replace(self._state, what=what, done=done, total=total, notes=()))

    def complete(self) -> None:
        """The output is written."""
        self.write(replace(self._state, status="completed", exit_code=0, notes=()))

    def fail(self, error: BaseException) -> None:
        """The run ends with this error."""
        code, cause, next_step = _ending(error)
        failed = replace(self._state, status="failed", exit_code=code)
        cause = shown(" ".join(cause.split()), _LONGEST)
        self.write(replace(failed, cause=cause, next_step=next_step))

    def write(self, state: RunState) -> None:
        """Replace the file, whole or not at all. Without an output folder nothing is written.

        Raises:
            StorageError: the disk is full, or the folder is read-only.
        """
        now_waiting = {} if state.status == "completed" else self.waiting_for()
        waiting = {shown(site): shown(why) for site, why in now_waiting.items()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._state = replace(state, waiting=waiting, updated=now)
        if not self._file.parent.is_dir():
            return
        text = json.dumps(asdict(self._state), indent=2, ensure_ascii=False, allow_nan=False)
        with writing(self._file) as partial:
            partial.write_text(text + "\n", encoding="utf-8")


def is_state(name: str) -> bool:
    """Whether a file of this name is the state, or the rest of a write that was killed."""
    return name == STATE or (name.startswith(f"{STATE}.") and name.endswith(".partial"))


@contextmanager
def recording(folder: Path) -> Iterator[Recorder]:
    """Keep ``state.json`` in the folder during a run; an error that leaves this context ends it.

    A missing folder is not created: a command that refuses bad input leaves nothing behind, and
    says itself what is wrong.
    """
    for left in folder.glob(f"{STATE}.*.partial"):
        left.unlink(missing_ok=True)
    recorder = Recorder(folder)
    recorder.write(RunState())
    try:
        with also_listening(recorder):
            yield recorder
    except BaseException as error:
        with suppress(StorageError):  # the error that ends the run says more than a full disk
            recorder.fail(error)
        raise


def read_state(folder: Path) -> RunState | None:
    """Where the run in a folder stands; None if no run has begun.

    Raises:
        JournalError: the file is damaged.
    """
    file = folder / STATE
    if not file.is_file():
        return None
    kept = read_json(file, JournalError, "remove it")
    with reading(f"{file} cannot be read", "remove it", JournalError):
        state = TypeAdapter(RunState).validate_python(kept)
    if state.status != "running" or is_held(lock_of(folder)):
        return state
    return replace(
        state,
        status="died",
        exit_code=RunFailedError.exit_code,
        cause="the process of the run is gone: it was killed, or the machine stopped",
        next_step=RunFailedError.next_step,
    )


def _ending(error: BaseException) -> tuple[int, str, str]:
    """Exit code, cause and next step."""
    match refused_path(error) or error:
        case LayerweldError() as foreseen:
            return foreseen.exit_code, str(foreseen), foreseen.next_step
        case KeyboardInterrupt():
            return 130, INTERRUPTED[130], RESUMES
        case SystemExit(code=int(code)) if code in INTERRUPTED:
            return code, INTERRUPTED[code], RESUMES
        case SystemExit():
            return RunFailedError.exit_code, "its process was told to end", RunFailedError.next_step
    cause = f"{type(error).__name__}: {error}"
    return UNFORESEEN, cause, LayerweldError.next_step
