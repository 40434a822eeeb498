"""Flower's ``flwr-clientapp`` for one application only: any other bundle is refused unread.

Run as a program, with the SHA-256 of the bundle before Flower's own arguments. It replaces
``flwr-clientapp`` on the search path of a site's SuperNode. Flower would import any folder that the
coordinator's names lead to. Here the bundle's bytes are hashed, unpacked by this process into a new
folder that nobody else can enter, and imported from there. Nothing that was on the disk before is
imported, whatever its name.

It imports nothing from layerweld: that would hide the bundle's own.
"""

import atexit
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from flwr.clientapp.client_app import LoadClientAppError
from flwr.supercore.utils import get_flwr_home
from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

LARGEST_BUNDLE = 64 * 2**20  # bytes, unpacked; ours are one
_FOLDER = "running"  # in Flower's home: what running applications were unpacked into
_OTHERS_MAY_WRITE = 0o022


class ForeignApplicationError(LoadClientAppError):
    """The coordinator sent another application than the one this site has installed.

    Flower reports it with a code of its own, and keeps the text to itself.
    """


def refuse_others(pinned: str) -> None:
    """From now on Flower unpacks and imports only the bundle with this SHA-256.

    Raises:
        AttributeError: this version of Flower runs applications in another way; nothing may run.
    """
    application = _Application(pinned)
    _replace("install_from_fab", lambda _flowers: application.unpack)
    _replace("get_project_dir", lambda _flowers: application.folder)
    _replace("get_load_client_app_fn", application.loader)
    _replace("install_app_dependencies", lambda _flowers: _install_nothing)


class _Application:
    """The application that may run, and where this process has unpacked it."""

    def __init__(self, pinned: str) -> None:
        self._pinned = pinned
        self._folder: Path | None = None

    def unpack(self, bundle: bytes, *_arguments: Any, **_options: Any) -> Path:
        sent = hashlib.sha256(bundle).hexdigest()
        if sent != self._pinned:
            raise ForeignApplicationError(
                f"this site runs application {self._pinned[:12]} only, and was sent {sent[:12]}: "
                f"install the same layerweld at the coordinator and at the site"
            )
        sys.dont_write_bytecode = True  # the folder goes with this process
        self._folder = unpack(bundle, get_flwr_home() / _FOLDER)
        return self._folder

    def folder(self, *_names: str) -> Path:
        if self._folder is None:
            raise ForeignApplicationError("no bundle was checked and unpacked by this process")
        return self._folder

    def loader(self, load: Callable[..., Any]) -> Callable[..., Any]:
        """Flower's own loader, which refuses another id or version, for the unpacked folder."""
        return lambda *_arguments, **_options: load("", str(self.folder()), True)


def unpack(bundle: bytes, parent: Path) -> Path:
    """Unpack a bundle into a new folder of this process, which is deleted when it ends.

    Args:
        bundle: a zip archive of regular files.
        parent: folder for the new one; made if need be.

    Raises:
        ForeignApplicationError: the archive is too large or holds something other than files, or
            somebody else may write where it would be unpacked.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    parent = Path(os.path.realpath(parent))  # so that no link on the way is followed later
    require_private(parent)
    _delete_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(BytesIO(bundle)) as archive:
        files = [member for member in archive.infolist() if not member.is_dir()]
        if sum(file.file_size for file in files) > LARGEST_BUNDLE:
            raise ForeignApplicationError(f"the bundle is over {LARGEST_BUNDLE} bytes unpacked")
        for file in files:
            target = folder / _inside(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(file) as packed, target.open("xb") as opened:
                opened.write(packed.read(file.file_size))
    return folder


def require_private(folder: Path) -> None:
    """Refuse a folder that somebody else may write into, or into a folder above it.

    Args:
        folder: absolute and without links.

    Raises:
        ForeignApplicationError: it, or a folder above it, belongs to another person or is writable
            by others. Above it, a sticky folder (``/tmp``) is fine: others cannot rename what is
            there.
    """
    for place in (folder, *folder.parents):
        found = place.lstat()
        writable = found.st_mode & _OTHERS_MAY_WRITE
        if place != folder and found.st_mode & stat.S_ISVTX:
            writable = 0
        if writable or found.st_uid not in (0, os.geteuid()) or not stat.S_ISDIR(found.st_mode):
            raise ForeignApplicationError(
                f"others may write into {place}, and could put code there: "
                f"`chmod go-w {place}`, or use a folder below one of your own"
            )


def _replace(name: str, by: Callable[[Any], Any]) -> None:
    """Replace what Flower's runner calls by this name."""
    if name not in run_clientapp.run_clientapp.__code__.co_names:
        raise AttributeError(f"this Flower does not call {name}: layerweld does not know it")
    setattr(run_clientapp, name, by(getattr(run_clientapp, name)))


def _install_nothing(*_arguments: Any, **_options: Any) -> NoReturn:
    raise ForeignApplicationError("a run cannot install anything at this site")


def _inside(member: zipfile.ZipInfo) -> PurePosixPath:
    """Where a file of an archive goes, if it is one and stays within the folder."""
    path = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or kind not in (0, stat.S_IFREG):
        raise ForeignApplicationError(f"the bundle holds {member.filename!r}, which is not a file")
    return path


def _delete_leftovers(parent: Path) -> None:
    """Delete what killed processes left; a folder's name begins with its process's number."""
    for folder in parent.iterdir():
        owner = folder.name.split("-")[0]
        if owner.isdigit() and not _is_running(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    refuse_others(sys.argv.pop(1))
    flwr_clientapp()
