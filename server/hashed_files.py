"""Tensors in a file that is known to be whole: its hash lies beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from layerweld.errors import JournalError
from layerweld.runtime.disk import writing
from layerweld.untrusted.files import check_readable, contents, reading
from layerweld.untrusted.tensors import opened_tensors
from layerweld.updates.bounds import require_finite

_AGAIN = "remove it to compute it again"
_HASH_SIZE = 64  # characters of a SHA-256


def write_hashed(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Tensors in one file, and beside it the file's hash.

    Raises:
        UnusableMergeError: a number is not finite; whoever went on from the file would fail for
            ever, so nothing is written.
    """
    require_finite(tensors, file.name)
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    with writing(file) as partial:
        save_file(contiguous, partial, metadata=dict(metadata))
        with writing(file.with_suffix(".sha256")) as hashed:
            hashed.write_text(_digest(partial), encoding="utf-8")


def read_hashed(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file that matches its hash.

    Raises:
        JournalError: it does not, or cannot be read.
    """
    check_readable(file, JournalError)
    expected = contents(file.with_suffix(".sha256"), JournalError, _HASH_SIZE)
    with reading(f"{file} cannot be read", _AGAIN, JournalError):
        if _digest(file).encode() != expected:
            raise JournalError(f"{file} does not match its hash; {_AGAIN}")
    with opened_tensors(file, _AGAIN, JournalError) as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        return tensors, opened.metadata() or {}


def read_metadata(file: Path) -> dict[str, str]:
    """A file's metadata; its tensors are not read, nor is the file compared with its hash.

    Raises:
        JournalError: it cannot be read.
    """
    with opened_tensors(file, _AGAIN, JournalError) as opened:
        return opened.metadata() or {}


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
