"""Paths that the system or Python refuses, told apart from our own mistakes.

A name may be too long, a link may lead to itself, a folder may stand where a file is meant. Python
raises ``OSError`` for some of this, and errors without a class of their own for the rest.
"""

from __future__ import annotations

import errno
import os

from layerweld.errors import ConfigError, LayerweldError, StorageError
from layerweld.untrusted.text import shown

LONGEST_PATH = 300  # characters of one that are shown
_OF_THE_DISK = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
)
# How the messages of Python's `pathlib` and `os` begin, and what they mean.
_SAID = {
    "Symlink loop from": "a path leads through a link to itself",
    "Could not determine home directory": "a path begins with `~` and a user unknown here",
    "embedded null": "a path holds a null byte",
    "lstat: embedded null": "a path holds a null byte",
    "stat: embedded null": "a path holds a null byte",
}


def refused_path(error: BaseException) -> LayerweldError | None:
    """The error to end a command with if an error is about a path; None if it is not.

    Returns:
        A :class:`StorageError` where space or permissions are the way out, and a
        :class:`ConfigError` where only another path is.
    """
    if isinstance(error, OSError):
        if error.filename is None:
            return None
        kind = StorageError if error.errno in _OF_THE_DISK else ConfigError
        named = error.filename
        path = os.fsdecode(named) if isinstance(named, bytes | os.PathLike) else str(named)
        return kind(f"{shown(path, LONGEST_PATH)} cannot be used ({error.strerror})")
    if isinstance(error, RuntimeError | ValueError):
        text = str(error)
        for beginning, meaning in _SAID.items():
            if text.startswith(beginning):
                return ConfigError(f"{meaning} ({shown(text, 2 * LONGEST_PATH)})")
    return None
