"""Tensors as Flower arrays; what arrives is checked by its header before memory is taken."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as Flower arrays. numpy has no bfloat16, so everything travels as float32."""
    return ArrayRecord({k: Array(t.float().contiguous().numpy()) for k, t in tensors.items()})


def from_arrays(record: ArrayRecord) -> dict[str, Tensor]:
    """Flower arrays as float32 tensors of their own memory."""
    return {key: torch.from_numpy(array.numpy().copy()).float() for key, array in record.items()}


def read_arrays(record: ArrayRecord, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """As :func:`from_arrays`, for arrays that nobody vouches for.

    Args:
        record: as it came over the network.
        shapes: of every array that must be there; no other may.

    Raises:
        ValueError: one is missing, is not expected, or is anything but little-endian float32 in
            C order of that shape and of just as many bytes. Nothing was allocated then.
    """
    missing, surplus = sorted(shapes.keys() - record.keys()), sorted(record.keys() - shapes.keys())
    if missing or surplus:
        kind, names = ("missing", missing) if missing else ("unexpected", surplus)
        raise ValueError(f"array {names[0]!r} (of {len(names)} such) is {kind}")
    for name, shape in shapes.items():
        _check_header(name, record[name], shape)
    return from_arrays(record)


def _check_header(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """What numpy would believe when it allocates: the header inside the data, not Flower's."""
    if array.stype != "numpy.ndarray" or array.dtype != "float32":
        raise ValueError(f"{name!r} is {array.stype} of {array.dtype}, not numpy float32")
    opened = io.BytesIO(array.data)
    if np.lib.format.read_magic(opened) != (1, 0):
        raise ValueError(f"{name!r} has a header of another version")
    found, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
    if tuple(array.shape) != shape or found != shape:
        raise ValueError(f"{name!r} is {found}, not {shape}")
    if dtype.str != "<f4" or (fortran and min(shape, default=1) > 1):
        raise ValueError(f"{name!r} is {dtype.str} in another order than C")
    numbers, rest = int(np.prod(shape, dtype=object)), len(array.data) - opened.tell()
    if rest != 4 * numbers:
        raise ValueError(f"{name!r} has {rest} bytes for {numbers} numbers")


def num_bytes(content: RecordDict) -> int:
    """Bytes of all arrays in a message; the few words around them are not counted."""
    return sum(len(a.data) for record in content.array_records.values() for a in record.values())
