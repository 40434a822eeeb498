"""Flower's ``flower-superexec``, which asks for tasks often in a run and seldom between runs.

Flower asks at a fixed interval for ever. A run needs 0.2 s, because a site has one task per
message. Between runs that would keep a SuperLink and every SuperNode serving five empty requests
a second for months.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from flwr.supercore.cli import flower_superexec
from flwr.supercore.superexec import run_superexec

_BUSY, _IDLE = 0.2, 2.0  # seconds between two requests
_CLOCK = "time"  # the module that Flower's loop pauses with
_BUSY_FOR = 120.0  # seconds after a task in which the next one is expected at any time


class Pace:
    """How long to pause before the next request.

    Args:
        clock: seconds that only grow.
        sleep: pauses for so many seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._last_task = -_BUSY_FOR

    def note_task(self) -> None:
        """Note that a task has come."""
        self._last_task = self._clock()

    def pause(self, _seconds: float = 0.0) -> None:
        """Pause for as long as is right now, whatever Flower asks for."""
        is_busy = self._clock() - self._last_task < _BUSY_FOR
        self._sleep(_BUSY if is_busy else _IDLE)


def keep_pace(pace: Pace) -> None:
    """Make Flower's loop pause as ``pace`` says from now on.

    Raises:
        AttributeError: this version of Flower has another loop; nothing may run.
    """
    handle = run_superexec._handle_launch_result
    getattr(run_superexec, _CLOCK)

    def note_and_handle(*launched: Any) -> None:
        pace.note_task()
        handle(*launched)

    for name, ours in (
        ("_handle_launch_result", note_and_handle),
        (_CLOCK, SimpleNamespace(sleep=pace.pause)),
    ):
        setattr(run_superexec, name, ours)


if __name__ == "__main__":
    keep_pace(Pace())
    flower_superexec()
