"""Files that somebody else made: looked at before they are opened, and read within bounds.

Whatever a library raises for a damaged file becomes an error of ours.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from layerweld.errors import LayerweldError, MemoryShortageError
from layerweld.out_of_memory import raising_memory_shortage
from layerweld.untrusted.paths import LONGEST_PATH
from layerweld.untrusted.text import shown

_LONGEST_REASON = 300  # characters; some libraries list everything they know
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_POINTER_SIZE = 1024  # bytes; by its specification a pointer is smaller
_TOO_LARGE = "{} is larger than {:g} MiB, and no such file is; give the right one"
_TAIL = 64 * 2**10  # bytes of a log's end


@contextmanager
def reading(problem: str, remedy: str, error: type[LayerweldError]) -> Iterator[None]:
    """Let a library read a user's files within this context.

    The libraries have no class of their own for a file that is not what it should be. tokenizers
    raises a bare ``Exception``, and transformers whatever its code runs into first.

    Args:
        problem: which file is wrong, and how, if the library fails.
        remedy: the way out.
        error: to raise.

    Raises:
        LayerweldError: ``error`` with the library's reason, or one that the body raises itself.
            Lack of memory keeps its own name, because a file may claim any size.
    """
    try:
        with raising_memory_shortage():
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

    These are files that the system does not let this user read, pipes and devices (opening one
    may wait for ever), and the pointers that Git LFS leaves instead of files. Libraries call all
    of these missing or damaged. A path that does not exist is left to the libraries.

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
        LayerweldError: ``error``: it is missing, too large, not a plain file, or not readable.
    """
    with opened_file(file, error) as opened:
        found = opened.read(most + 1)
    if len(found) > most:
        raise error(_TOO_LARGE.format(file, most / 2**20))
    return found


def add_to_hash(digest: Any, file: Path, error: type[LayerweldError], most: int) -> None:
    """Add a file's bytes to a hash, a piece at a time: it need not fit into memory.

    Args:
        digest: an object of :mod:`hashlib`.
        file: to read.
        error: to raise.
        most: bytes that such a file may have.

    Raises:
        LayerweldError: as :func:`contents`.
    """
    with opened_file(file, error) as opened:
        refuse_larger(file, opened, error, most)
        hashlib.file_digest(opened, lambda: digest)  # type: ignore[arg-type]


def last_lines(log: Path, count: int, error: type[LayerweldError]) -> list[str]:
    """The last lines of a log, read from its last 64 KiB, however long it has become.

    Args:
        log: to read; one that does not exist has no lines.
        count: how many.
        error: to raise.

    Raises:
        LayerweldError: ``error``: it is not a plain file, or not readable.
    """
    return last_text(log, error).splitlines()[-count:] if log.exists() else []


def last_text(log: Path, error: type[LayerweldError], begin: int = 0, most: int = _TAIL) -> str:
    """The end of a log.

    Args:
        log: to read.
        error: to raise.
        begin: the first byte to read.
        most: bytes to read.

    Raises:
        LayerweldError: as :func:`last_lines`.
    """
    with opened_file(log, error) as opened:
        end = opened.seek(0, os.SEEK_END)
        opened.seek(max(begin, end - most))
        return opened.read(most).decode(errors="replace")


def named_path(
    text: str | Path, what: str, error: type[LayerweldError], parent: Path = Path()
) -> Path:
    """A path that somebody typed, made absolute: ``~`` and links are resolved.

    Args:
        text: as typed.
        what: where it was typed: the option or the key.
        error: to raise.
        parent: what a relative path is relative to.

    Raises:
        LayerweldError: ``error``: no file or folder can have that name. A path that is merely
            missing is left to its reader.
    """
    problem = f"{what}: {shown(str(text), LONGEST_PATH)!r} cannot be used"
    with reading(problem, "give another path", error):
        path = (parent / Path(text).expanduser()).resolve()
        path.exists()
    return path


@contextmanager
def opened_file(file: Path, error: type[LayerweldError]) -> Iterator[IO[bytes]]:
    """Open a plain file to read its bytes; what goes wrong within becomes ``error``, too."""
    check_readable(file, error)
    with reading(f"{file} cannot be read", "check it and its path", error):
        # It may have become a pipe since: without this, opening one waits for its other end.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            yield opened


def refuse_larger(file: Path, opened: IO[bytes], error: type[LayerweldError], most: int) -> None:
    """Refuse an open file, before it is read, that has more than ``most`` bytes.

    Raises:
        LayerweldError: ``error``.
    """
    if os.fstat(opened.fileno()).st_size > most:
        raise error(_TOO_LARGE.format(file, most / 2**20))


def _leads_somewhere(path: Path, error: type[LayerweldError]) -> bool:
    if path.exists():
        return True
    if path.is_symlink():
        raise error(f"{path} is a broken link; put the file itself there")
    return False


def _check_access(path: Path, error: type[LayerweldError]) -> None:
    if not os.access(path, os.R_OK):
        raise error(
            f"{path}: permission denied; change its permissions, or run as a user who may read it"
        )


def _check_kind(path: Path, error: type[LayerweldError]) -> None:
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        return
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{path} is not a file but a pipe, a socket or a device; put a file there")
    if len(_LFS_POINTER) < found.st_size <= _POINTER_SIZE:
        with path.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise error(
                    f"{path} is only a Git LFS pointer to the file; install Git LFS and run "
                    f"`git lfs pull` where it was cloned"
                )


def _reason(raised: BaseException) -> str:
    text = " ".join(str(raised).split())[:_LONGEST_REASON]
    printable = "".join(one if one.isprintable() else "?" for one in text)
    return f"{type(raised).__name__}: {printable}" if text else type(raised).__name__
