"""How a command ends: with an exit code, and with the cause and the next step as last lines."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress

import click

from layerweld.errors import UNFORESEEN, LayerweldError
from layerweld.out_of_memory import raising_memory_shortage
from layerweld.runtime.interruptions import INTERRUPTED, RESUMES, ending_on_signals
from layerweld.untrusted.paths import refused_path

WRONG_COMMAND_LINE = 2
NOBODY_READS = 141
"""128 plus the number of SIGPIPE, as in shells."""
_UNWRITABLE = 12  # as of a StorageError
_REPORT = LayerweldError.next_step
_ON_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)


def run_and_end(app: Callable[..., object]) -> None:
    """Run a typer application and exit. If the code is not 0, say first why and what to do next.

    Raises:
        SystemExit: always; its code is a row of ``docs/exit-codes.md``.
    """
    ending_on_signals()
    with suppress(AttributeError, ValueError):  # it is None, or not a file
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = _code_of(app)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    sys.exit(code)


def _code_of(app: Callable[..., object]) -> int:
    try:
        with raising_memory_shortage():
            returned = app(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except LayerweldError as error:
        return _foreseen(error)
    except click.ClickException as error:
        return _misused(error)
    except (click.Abort, KeyboardInterrupt):
        return _interrupted(130)
    except SystemExit as end:
        if _nobody_reads(end):
            return _say(NOBODY_READS, "nobody reads what it prints any more", RESUMES)
        return _interrupted(end.code, getattr(end, "next_step", RESUMES))
    except Exception as error:  # noqa: BLE001  # a bug: shown whole, and still ended in order
        return _unforeseen(error)
    return _interrupted(returned)


def _foreseen(error: LayerweldError) -> int:
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return _say(error.exit_code, f"{error}{notes}", error.next_step)


def _interrupted(code: object, next_step: str = RESUMES) -> int:
    """The end of a command that ended itself: nothing is left to say unless it was interrupted."""
    if code in INTERRUPTED:
        _say(0, INTERRUPTED[code], next_step)
    return code if isinstance(code, int) else 0


def _misused(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "layerweld"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        cause = f"`{command}` needs a command or arguments"
    else:
        cause = " ".join(error.format_message().split())
    return _say(WRONG_COMMAND_LINE, cause, f"look at `{command} --help`")


def _unforeseen(error: Exception) -> int:
    if _nobody_reads(error):
        return _say(NOBODY_READS, "nobody reads what it prints any more", RESUMES)
    if isinstance(error, OSError) and error.errno in _ON_OUTPUT and error.filename is None:
        cause = f"standard output cannot be written ({error.strerror})"
        return _say(
            _UNWRITABLE, cause, "print to a place with free space, and type the command again"
        )
    if refused := refused_path(error):
        return _foreseen(refused)
    with suppress(OSError):
        traceback.print_exception(error)
    return _say(UNFORESEEN, f"{type(error).__name__}: {error}", _REPORT)


def _nobody_reads(error: BaseException) -> bool:
    """Whether standard output was a pipe whose reader is gone; typer and rich exit with 1 then."""
    return any(isinstance(cause, BrokenPipeError) for cause in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    ahead: BaseException | None = error
    while ahead is not None:
        yield ahead
        ahead = ahead.__cause__ or ahead.__context__


def _say(code: int, cause: str, next_step: str) -> int:
    from layerweld.runtime.terminal import errors
    from layerweld.untrusted.text import shown

    with suppress(OSError, SystemExit):  # nobody reads this either: the code says it
        for line in (f"layerweld: {shown(cause, 4000)}", f"next: {shown(next_step, 4000)}"):
            style = "red" if line.startswith("layerweld") else None
            errors.print(line, style=style, highlight=False, soft_wrap=True)
    return code


def _flush(stream: object) -> None:
    """Drop what cannot be written. If Python found out at its end, the exit code would be 120."""
    try:
        stream.flush()  # type: ignore[attr-defined]
    except AttributeError:  # closed by whatever started the command
        return
    except (OSError, ValueError):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]
