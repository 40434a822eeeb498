"""safetensors files that somebody else made: the header is looked at before it is read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from layerweld.errors import LayerweldError
from layerweld.untrusted.files import check_readable, reading
from layerweld.untrusted.text import quoted

_LONGEST_HEADER = 32 * 2**20  # bytes; of models of 100,000 tensors in one file it has 12 MB
_LENGTH = struct.Struct("<Q")
_FLOATS = ("F64", "F32", "F16", "BF16")

HUGEST = 1e10
"""No number in a trained network comes near it. The product of two smaller ones is finite."""


@contextmanager
def opened_tensors(file: Path, remedy: str, error: type[LayerweldError]) -> Iterator[Any]:
    """A safetensors file, opened: ``keys``, ``metadata``, ``get_slice``, ``get_tensor``.

    Whatever goes wrong while the body reads tensors and metadata counts as damage.

    Args:
        file: must exist.
        remedy: what to do if it is damaged.
        error: to raise.

    Raises:
        LayerweldError: ``error``: it is damaged, cut short or not a plain file.
    """
    check_readable(file, error)
    with reading(f"{file} is damaged or cut short", remedy, error):
        _check_header(file)
        with safe_open(file, framework="pt") as opened:
            yield opened


def shape_of(opened: Any, name: str) -> tuple[int, ...]:
    """Shape of a tensor that is not read yet."""
    return tuple(opened.get_slice(name).get_shape())


def trained_tensor(opened: Any, file: Path, name: str, error: type[LayerweldError]) -> Tensor:
    """Trained numbers: floating point, finite, and within reason.

    Raises:
        LayerweldError: ``error``, with the tensor's name.
    """
    kind = opened.get_slice(name).get_dtype()
    if kind not in _FLOATS:
        raise error(f"{file}: {quoted(name)} holds {kind}, not trained numbers; save it again")
    tensor: Tensor = opened.get_tensor(name)
    check_numbers(tensor, file, name, error)
    return tensor


def check_numbers(tensor: Tensor, file: Path, name: str, error: type[LayerweldError]) -> None:
    """Refuse numbers that no successful training ends with.

    Raises:
        LayerweldError: ``error``, with the tensor's name.
    """
    if not torch.isfinite(tensor).all():
        raise error(
            f"{file}: {quoted(name)} holds NaN or infinity; the training diverged: repeat it with "
            f"a lower learning rate"
        )
    if tensor.numel() and tensor.abs().max() > HUGEST:
        raise error(
            f"{file}: {quoted(name)} holds numbers beyond {HUGEST:.0e}; the training diverged: "
            f"repeat it with a lower learning rate"
        )


def _check_header(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        raise ValueError("it ends before its header")
    length = _LENGTH.unpack(start)[0]
    if length > min(_LONGEST_HEADER, file.stat().st_size):
        raise ValueError(f"it claims a header of {length} bytes")
