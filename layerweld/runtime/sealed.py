"""Is a folder still on the disk, to the bit? Its own record of hashes says so."""

from __future__ import annotations

import hashlib
import json
import stat
from functools import lru_cache
from pathlib import Path

from layerweld.errors import StorageError
from layerweld.untrusted.documents import read_json
from layerweld.untrusted.files import add_to_hash

_RECORD = "hashes.json"


def seal(folder: Path) -> None:
    """Record the hash of every file in a folder that has just been filled."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    hashes = {str(file.relative_to(folder)): _hash_of(file) for file in files}
    (folder / _RECORD).write_text(json.dumps(hashes, indent=2), encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Whether every file that was there when the folder was sealed is there, unchanged."""
    try:
        hashes = read_json(folder / _RECORD, StorageError, "make it again")
        return bool(hashes) and all(
            _hash_of(folder / name) == expected for name, expected in hashes.items()
        )
    except (StorageError, OSError, ValueError):  # missing; or a record that names no files
        return False


def _hash_of(file: Path) -> str:
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise StorageError(f"{file} is not a file")
    return _hash_of_version(file, about.st_ino, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=64)
def _hash_of_version(file: Path, _inode: int, _changed: int, size: int) -> str:
    """A handshake asks five times over, and a trained adapter may be half a gigabyte."""
    digest = hashlib.sha256()
    add_to_hash(digest, file, StorageError, size)
    return digest.hexdigest()
