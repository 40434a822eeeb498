"""What a person sees while a command runs: progress bars, warnings, one line per error."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from layerweld.runtime.progress import listening
from layerweld.untrusted.text import shown_lines


class _Escaping(RenderHook):
    """Escapes everything that is printed, so that no text can steer the terminal.

    Rich's own control sequences stay.
    """

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            text = segment.text if segment.control else shown_lines(segment.text, _LONGEST)
            yield segment._replace(text=text)


def _console(*, stderr: bool) -> Console:
    """A console without markup: names of sites, files and folders may hold brackets."""
    made = Console(stderr=stderr, markup=False, emoji=False)
    made.push_render_hook(_Escaping())
    return made


_LONGEST = 100_000  # characters of a line
console = _console(stderr=False)
errors = _console(stderr=True)


@contextmanager
def showing_progress() -> Iterator[None]:
    """Show progress as one bar per kind of work, or as plain lines if this is not a terminal."""
    _quiet_libraries()
    if not console.is_terminal:
        with listening(_Lines()):
            yield
        return
    columns = (
        TextColumn("{task.description}", markup=False),
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
    """Silence libraries: what a user must know comes as one of our errors or warnings."""
    for name in ("flwr", "transformers", "lightning", "lightning.pytorch", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Flower sets its level when it is imported, which may be later than this.
    logging.getLogger("flwr").addFilter(lambda record: record.levelno >= logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(peft|transformers|torch)")
