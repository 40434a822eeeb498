"""What a person sees while a command runs: progress bars, warnings, one line per error."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from layerweld.progress import listening

console = Console(stderr=False, markup=False)
errors = Console(stderr=True, markup=False)
"""Names of sites, files and folders may hold brackets: nothing printed here is taken for markup."""


def one_line(text: str) -> str:
    """A text with whatever would begin a line, or steer a terminal, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def showing_progress() -> Iterator[None]:
    """Show what is reported as one bar per kind of work; plain lines where nobody watches."""
    _quiet_libraries()
    if not console.is_terminal:
        with listening(_Lines()):
            yield
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, listening(_Bars(progress)):
        yield


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, object] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if total == 0:
            self._progress.console.print(what, style="yellow")
            return
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(task, completed=done, total=total)  # type: ignore[arg-type]


class _Lines:
    def __init__(self) -> None:
        self._finished: set[str] = set()

    def __call__(self, what: str, done: int, total: int) -> None:
        if done == total and what not in self._finished:
            self._finished.add(what)
            console.print(what if total == 0 else f"{what}: {total} of {total}", highlight=False)


def _quiet_libraries() -> None:
    """Libraries speak to developers; what a user must know comes as an error or a warning."""
    for name in ("flwr", "transformers", "lightning", "lightning.pytorch", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Flower sets its level when it is imported, which may be later than this.
    logging.getLogger("flwr").addFilter(lambda record: record.levelno >= logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(peft|transformers|torch)")
