"""Files and folders that are whole or absent, with the right permissions from the first byte."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from layerweld.errors import DeployError, StorageError
from layerweld.runtime import disk
from layerweld.untrusted import documents as foreign_text

PRIVATE = 0o600
PUBLIC = 0o644

_OTHERS_MAY_WRITE = 0o022


def write_whole(file: Path, content: bytes, mode: int = PUBLIC) -> None:
    """Write a file, whole or not at all. A private file is never readable by others.

    Raises:
        StorageError: it cannot be written.
    """
    with disk.writing(file) as partial:
        partial.unlink(missing_ok=True)  # of a killed process that had the same number
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
        partial.chmod(mode)  # whatever the umask took away


def write_toml(file: Path, tables: Mapping[str, Any], comment: str) -> None:
    """Write a TOML file that opens with a comment of whole lines."""
    heading = "".join(f"# {line}\n" for line in comment.splitlines())
    write_whole(file, (heading + tomli_w.dumps(tables)).encode())


def read_toml(file: Path, made_by: str) -> dict[str, Any]:
    """Read a TOML file of ours.

    Args:
        file: to read.
        made_by: the command that makes it, for the error message.

    Raises:
        DeployError: it is missing, or not TOML.
    """
    if not file.exists():
        raise DeployError(f"{file} does not exist; give `--folder`, or make one with `{made_by}`")
    return foreign_text.read_toml(file, DeployError)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder under another name; it gets its own name when everything is in it.

    Raises:
        DeployError: the folder exists already, or cannot be created.
        StorageError: what is put into it cannot be written.
    """
    if folder.exists():
        raise DeployError(f"{folder} exists already; choose another name, or remove it")
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(disk.new_folder(folder, mode=0o700))
        except StorageError as error:
            raise DeployError(f"{folder} cannot be created: {error.__cause__}") from None
        yield partial


def require_private(folder: Path) -> None:
    """Refuse a folder whose content others can change or replace.

    Raises:
        DeployError: it, or a folder above it, belongs to another person or is writable by others.
            Above it, a sticky folder (``/tmp``) is fine: others cannot rename what is there.
    """
    real = folder.resolve()
    for place in (real, *real.parents):
        found = place.lstat()
        writable = found.st_mode & _OTHERS_MAY_WRITE
        if place != real and found.st_mode & stat.S_ISVTX:
            writable = 0
        if writable or found.st_uid not in (0, os.geteuid()):
            raise DeployError(
                f"others may write into {place}, and so decide what runs in {folder}: "
                f"`chmod go-w {place}`, or use a folder below one of your own"
            )
