"""Keep a few programs running: start, watch and restart them, and end all of them together."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from layerweld.errors import DeployError
from layerweld.untrusted.files import last_text

_LOOK = 0.2  # seconds between looks at the programs
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_LONGEST_PAUSE = 15.0  # seconds before a program that dies at once is restarted
_DAY = 86400.0  # seconds
_STEADY = 60.0  # seconds after which a start counts as successful


_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_LARGEST_LOG = 64 * 2**20  # bytes; a SuperLink writes a few MB per site and day
_TAIL = 4000  # bytes of a log in which the reason for an end is looked for


@dataclass(frozen=True)
class Program:
    """One program to keep running.

    Attributes:
        name: for people, and of the log file.
        command: the command line.
        environment: all of it.
        explain: turns the end of the log into what a person can do about it; may be empty.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    explain: Callable[[str], str] = lambda _log: ""


class Supervisor:
    """Runs programs in process groups of their own until it is told to stop.

    A program that ends is restarted: after one second, then two, four, … up to fifteen while it
    keeps ending soon. SIGTERM and Ctrl-C end every group, including those of crashed programs.

    Args:
        programs: in the order in which they are started; they end in the reverse order.
        logs: folder that gets one appended file per program.
        say: told what happens, one line at a time.
        tend: called once a day; returns the names of programs that must be restarted.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        logs: Path,
        say: Callable[[str], None],
        tend: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._watched = {
            program.name: _Watched(program, logs / f"{program.name}.log", say)
            for program in programs
        }
        self._tend = tend
        self._next_tend = time.monotonic() + _DAY
        self._stopping = False
        logs.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Block until SIGTERM or SIGINT."""
        before = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._stopping:
                self._tend_daily()
                for watched in self._watched.values():
                    watched.look()
                time.sleep(_LOOK)
        finally:
            for watched in reversed(self._watched.values()):
                watched.end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _tend_daily(self) -> None:
        if time.monotonic() < self._next_tend:
            return
        self._next_tend = time.monotonic() + _DAY
        for name in self._tend():
            self._watched[name].end()  # and the next look starts it

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True


class _Watched:
    """One program, its current process, and when to start the next one."""

    def __init__(self, program: Program, log: Path, say: Callable[[str], None]) -> None:
        self._program = program
        self._log = log
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._due = 0.0
        self._pause = 1.0
        self._wrote = 0

    def look(self) -> None:
        """Start the program if it is not running and its time has come; keep its log short."""
        if self._log.exists() and self._log.stat().st_size > _LARGEST_LOG:
            self._say(f"{self._log} is long: its older part is now {self._older}")
            shutil.copyfile(self._log, self._older)
            os.truncate(self._log, 0)  # the program appends, so it continues at the new end
            self._wrote = 0
        if self._process is not None and self._process.poll() is not None:
            self._ended(self._process)
        if self._process is None and time.monotonic() >= self._due:
            self._start()

    @property
    def _older(self) -> Path:
        return self._log.with_suffix(".older.log")

    def end(self) -> None:
        """Send SIGTERM, and SIGKILL to whatever is left of the group."""
        if self._process is None:
            return
        _signal_group(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._say(f"{self._program.name} does not end; killing it")
        _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._wrote = log.tell()
            try:
                self._process = subprocess.Popen(
                    self._program.command,
                    env=dict(self._program.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
            except OSError as error:
                raise DeployError(
                    f"{self._program.command[0]} cannot be started: {error.strerror}"
                ) from None
        self._started = time.monotonic()
        self._say(f"{self._program.name} started (process {self._process.pid}, log {self._log})")

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        _signal_group(process.pid, signal.SIGKILL)  # children it has left behind
        code = process.returncode
        if time.monotonic() - self._started > _STEADY:
            self._pause = 1.0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        tail = last_text(self._log, DeployError, self._wrote, _TAIL)
        reason = self._program.explain(tail)
        why = f" ({reason})" if reason else ""
        self._say(f"{self._program.name} {how}{why}; restarting it in {self._pause:.0f} s")
        self._process = None
        self._due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def _end_with_parent() -> None:
    """In the child: SIGTERM when the supervisor is killed, so that no process is left behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # no process is left in it
