"""Tensors in a file that is known to be whole: its hash lies beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from layerweld.disk import writing
from layerweld.errors import JournalError


def write_hashed(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Tensors in one file, and beside it the file's hash."""
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    with writing(file) as partial:
        save_file(contiguous, partial, metadata=dict(metadata))
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        with writing(file.with_suffix(".sha256")) as hashed:
            hashed.write_text(digest, encoding="utf-8")


def read_hashed(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file that matches its hash.

    Raises:
        JournalError: it does not, or cannot be read.
    """
    try:
        expected = file.with_suffix(".sha256").read_text()
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise JournalError(f"{file} does not match its hash; remove it to compute it again")
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return tensors, opened.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise JournalError(
            f"{file} cannot be read ({error}); remove it to compute it again"
        ) from None
