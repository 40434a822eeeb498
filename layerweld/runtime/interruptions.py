"""What ends a command from outside: reported, recorded and cleaned up after, like any other end."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

_FROM_OUTSIDE = {signal.SIGTERM: "told to end (SIGTERM)", signal.SIGHUP: "its terminal is gone"}
INTERRUPTED: dict[object, str] = {
    128 + signal.SIGINT: "interrupted from the keyboard",
    **{128 + number: cause for number, cause in _FROM_OUTSIDE.items()},
}
"""Cause by exit code, which is 128 plus the signal's number, as in shells."""
RESUMES = "type the same command: the run resumes"


class Left(SystemExit):
    """A command was interrupted, but what it began continues: the next step is another one."""

    def __init__(self, code: object, next_step: str) -> None:
        super().__init__(code)
        self.next_step = next_step


def ending_on_signals() -> None:
    """Let the signals of Slurm, Docker and closed terminals end the command in order.

    Otherwise Python would die at once. The run's state would say that it is running, and its lock
    file would stay. A signal that is ignored, as under ``nohup``, stays ignored.
    """
    for number in _FROM_OUTSIDE:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
