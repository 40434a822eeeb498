"""Files that somebody else made: looked at before they are opened, and read within bounds.

Whatever a library makes of a damaged one becomes an error of ours.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerweld.errors import LayerweldError, MemoryShortageError
from layerweld.memory import naming_memory

_LONGEST_REASON = 300  # characters; some libraries list everything they know
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_POINTER_SIZE = 1024  # bytes; by its specification a pointer is smaller


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
            lack of memory under its own name, since a file may claim any size.
    """
    try:
        with naming_memory():
            yield
    except MemoryShortageError as short:
        raise MemoryShortageError(f"{short}; or {problem}, and claims too much") from short
    except LayerweldError:
        raise
    except BaseException as raised:
        if not isinstance(raised, Exception) and type(raised).__name__ != "PanicException":
            raise  # of these only a panic of a library in Rust is about the file
        raise error(f"{problem} ({_reason(raised)}); {remedy}") from raised


def check_readable(path: Path, error: type[LayerweldError]) -> None:
    """Refuse a file, or a folder with a file, that cannot be read as one.

    That is what the system does not let this user read, what is no file at all (opening a pipe or
    a device may wait for ever), and what Git LFS leaves in a file's place. Libraries call all of
    these missing or damaged. One that is not there is left to them.

    Raises:
        LayerweldError: ``error``, with the file's name and the way out.
    """
    with reading(f"{path} cannot be looked at", "check its name and permissions", error):
        inside = path.iterdir() if path.is_dir() and os.access(path, os.R_OK | os.X_OK) else ()
        for one in (path, *inside):
            if _leads_somewhere(one, error):
                _check_access(one, error)
                _check_kind(one, error)


def contents(file: Path, error: type[LayerweldError], most: int) -> bytes:
    """All bytes of a file.

    Args:
        file: to read.
        error: to raise.
        most: bytes that such a file may have.

    Raises:
        LayerweldError: ``error``: it is missing, larger, no plain file, or may not be read.
    """
    check_readable(file, error)
    with reading(f"{file} cannot be read", "check it and its path", error):
        # It may have become a pipe since: without this, opening one waits for its other end.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            found = opened.read(most + 1)
    if len(found) > most:
        raise error(
            f"{file} is larger than {most / 2**20:g} MiB, which no such file is; give the right one"
        )
    return found


def _leads_somewhere(path: Path, error: type[LayerweldError]) -> bool:
    if path.exists():
        return True
    if path.is_symlink():
        raise error(f"{path} is a link that leads nowhere; put the file itself there")
    return False


def _check_access(path: Path, error: type[LayerweldError]) -> None:
    if not os.access(path, os.R_OK):
        raise error(
            f"{path} may not be read by this user; change its permissions, or run as a user who may"
        )


def _check_kind(path: Path, error: type[LayerweldError]) -> None:
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        return
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{path} is no file but a pipe, a socket or a device; put a file there")
    if len(_LFS_POINTER) < found.st_size <= _POINTER_SIZE:
        with path.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise error(
                    f"{path} is only Git LFS's pointer to the file; install Git LFS and run "
                    f"`git lfs pull` where it was cloned"
                )


def _reason(raised: BaseException) -> str:
    text = " ".join(str(raised).split())[:_LONGEST_REASON]
    printable = "".join(one if one.isprintable() else "?" for one in text)
    return f"{type(raised).__name__}: {printable}" if text else type(raised).__name__
