"""Files and folders that are whole or absent, even after a power cut; locks on folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from layerweld.errors import InUseError, StorageError


def user_cache() -> Path:
    """Where the user's cache of this project is."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "layerweld"


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Give a name to write under; what was written there becomes ``target`` at the end.

    The file is on the disk before it gets its name, and the name is on the disk before this
    returns. So a power cut leaves the old file or the new one. A failure leaves nothing behind.

    Raises:
        StorageError: the disk is full, the folder is read-only, or the disk is damaged.
    """
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    with raising_storage_error(target):
        try:
            make_folder(target.parent)
            yield partial
            _sync(partial)
            move(partial, target)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, mode: int = 0o777) -> Iterator[Path]:
    """Give a folder to fill; with everything in it, it becomes ``target`` at the end.

    The caller decides whether ``target`` may exist already; only an empty one is replaced. As with
    :func:`writing`, a power cut leaves all of it or nothing.

    Args:
        target: the folder's final name; its parents are created as well.
        mode: its permissions, less the umask, from the beginning.

    Raises:
        StorageError: the disk is full, the folder is read-only, or the disk is damaged.
    """
    partial = target.with_name(f"{target.name}.partial")
    with raising_storage_error(target):
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            make_folder(target.parent)
            partial.mkdir(mode=mode)
            yield partial
            sync_below(partial)
            move(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder; its new name is on the disk when this returns."""
    source.replace(target)
    _sync(target.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and bring their names to the disk."""
    missing = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync(made.parent)


def sync_below(folder: Path) -> None:
    """Bring a folder with all files and folders in it to the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


@contextmanager
def raising_storage_error(target: Path) -> Iterator[None]:
    """Turn what the operating system says about a write into an error with a way out.

    Raises:
        StorageError: the write failed.
    """
    try:
        yield
    except SafetensorError as error:
        # Rust's text, such as "I/O error: No space left on device (os error 28)"
        raise StorageError(f"{target} cannot be written ({error})") from _os_error(error)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror or error})") from error


@contextmanager
def holding_lock(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file; the operating system releases it when the process dies.

    Args:
        lock: the file; removed at the end.
        what: the folder that it stands for, for the message.

    Raises:
        InUseError: another process holds it.
    """
    with raising_storage_error(lock):
        make_folder(lock.parent)
        held = FileLock(lock, timeout=0)
        try:
            held.acquire()
        except Timeout:
            raise InUseError(f"another process is using {what} (it holds {lock})") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # first: a process that opened it sees that it has no name
        held.release()


def lock_of(folder: Path) -> Path:
    """The lock file of an output folder. It is beside the folder, which may not exist yet."""
    whole = folder.resolve()
    return whole.with_name(f".{whole.name}.lock")


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock file."""
    if not lock.is_file():
        return False
    probe = FileLock(lock, timeout=0)
    try:
        probe.acquire()
    except Timeout:
        return True
    probe.release()
    return False


def _os_error(error: SafetensorError) -> OSError | SafetensorError:
    _, _, number = str(error).rpartition("(os error ")
    digits = number.partition(")")[0]
    return OSError(int(digits), str(error)) if digits.isdigit() else error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
