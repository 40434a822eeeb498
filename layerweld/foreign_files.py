"""Files that other libraries read: whatever they make of a damaged one becomes an error of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerweld.errors import LayerweldError
from layerweld.memory import naming_memory

_LONGEST_REASON = 300  # characters; some libraries list everything they know


@contextmanager
def reading(problem: str, remedy: str, error: type[LayerweldError]) -> Iterator[None]:
    """Let a library read files of the user's inside of this.

    The libraries have no class of their own for a file that is not what it should be: tokenizers
    raises ``Exception`` itself, and transformers whatever its code runs into first.

    Args:
        problem: what is wrong with which file, should the library fail.
        remedy: the way out.
        error: to raise.

    Raises:
        LayerweldError: ``error`` with the library's reason, or one that the body raises itself;
            lack of memory under its own name.
    """
    try:
        with naming_memory():
            yield
    except LayerweldError:
        raise
    except Exception as raised:
        raise error(f"{problem} ({_reason(raised)}); {remedy}") from raised


def check_readable(path: Path, error: type[LayerweldError]) -> None:
    """Refuse a file, or a folder with a file, that the system does not let this user read.

    Libraries call such a file missing or damaged. One that is not there is left to them.

    Raises:
        LayerweldError: ``error``, with the file's name.
    """
    if not path.exists():
        return
    inside = path.iterdir() if path.is_dir() and os.access(path, os.R_OK | os.X_OK) else ()
    for one in (path, *inside):
        if not os.access(one, os.R_OK):
            raise error(
                f"{one} may not be read by this user; change its permissions, or run as a user who "
                f"may"
            )


def _reason(raised: Exception) -> str:
    text = " ".join(str(raised).split())[:_LONGEST_REASON]
    return f"{type(raised).__name__}: {text}" if text else type(raised).__name__
