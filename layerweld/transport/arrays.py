"""Tensors as Flower arrays, in one closed format: little-endian float32 in C order, nothing else.

No parser reads what arrives. Flower's :class:`Array` names the format and the shape; both are
compared with what is expected, and the number of bytes with the shape, before memory is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from layerweld.errors import UnusableMergeError

Shapes = Mapping[str, tuple[int, ...]]
"""Of arrays, by name."""

_STYPE, _DTYPE = "layerweld.raw", "float32"
_WIDTH = 4  # bytes of one number
_MOST_DIMENSIONS = 8  # no parameter of a model has as many


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as Flower arrays. numpy has no bfloat16, so everything travels as float32."""
    return ArrayRecord({name: _array(tensor) for name, tensor in tensors.items()})


def numpy_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """As Flower itself would make them, for what a strategy returns to Flower; never sent."""
    return ArrayRecord({k: Array(t.float().contiguous().numpy()) for k, t in tensors.items()})


def from_arrays(record: ArrayRecord) -> dict[str, Tensor]:
    """Arrays of whatever names and shapes they say, as float32 tensors of their own memory.

    For requests, whose ranks a site does not know beforehand: the caller compares the shapes.

    Raises:
        ValueError: one is in another format, or has another number of bytes than its shape says.
    """
    for name, array in record.items():
        _check(name, array, tuple(array.shape))
    return {name: _tensor(array) for name, array in record.items()}


def read_arrays(record: ArrayRecord, shapes: Shapes) -> dict[str, Tensor]:
    """As :func:`from_arrays`, of exactly these names and shapes.

    Args:
        record: as it came over the network.
        shapes: of every array that must be there; no other may.

    Raises:
        ValueError: one is missing, is not expected, or is anything but little-endian float32 in
            C order of that shape and of just as many bytes. Nothing was allocated then.
    """
    check_arrays(record, shapes)
    return {name: _tensor(record[name]) for name in shapes}


def check_arrays(record: ArrayRecord, shapes: Shapes) -> None:
    """What :func:`read_arrays` raises, without reading."""
    if record.keys() != shapes.keys():
        missing, surplus = shapes.keys() - record.keys(), record.keys() - shapes.keys()
        kind, names = ("missing", missing) if missing else ("unexpected", surplus)
        raise ValueError(f"array {min(names)[:100]!a} (of {len(names)} such) is {kind}")
    for name, shape in shapes.items():
        _check(name, record[name], shape)


def require_sendable(content: RecordDict) -> None:
    """No array of ours leaves with a number that is not finite: its receiver would refuse it.

    Raises:
        UnusableMergeError: one has.
    """
    for record in content.array_records.values():
        for name, array in record.items():
            if not np.isfinite(np.frombuffer(array.data, dtype="<f4")).all():
                raise UnusableMergeError(
                    f"{name[:100]} came out with numbers that are not finite, and is not sent; "
                    f"does the model give such numbers on these samples, in another precision too?"
                )


def blank(*shape: int) -> Tensor:
    """A tensor that has a shape and no numbers: it stands for one that a site will send."""
    return torch.empty(shape, device="meta")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def bytes_of(shapes: Shapes) -> int:
    """What arrays of these shapes take on the wire, without any header."""
    return sum(_WIDTH * prod(shape) for shape in shapes.values())


def num_bytes(content: RecordDict) -> int:
    """Bytes of all arrays in a message; the few words around them are not counted."""
    return sum(len(a.data) for record in content.array_records.values() for a in record.values())


def digest_of_arrays(*records: ArrayRecord) -> str:
    """SHA-256 over the names, shapes and numbers that travel."""
    digest = hashlib.sha256()
    for number, record in enumerate(records):
        for name, array in sorted(record.items()):
            digest.update(f"{number} {name} {tuple(array.shape)} ".encode())
            digest.update(array.data)
    return digest.hexdigest()


def _array(tensor: Tensor) -> Array:
    values = tensor.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False)
    return Array(dtype=_DTYPE, shape=tuple(values.shape), stype=_STYPE, data=values.tobytes())


def _check(name: str, array: Array, shape: tuple[int, ...]) -> None:
    name = name[:100]
    if array.stype != _STYPE or array.dtype != _DTYPE:
        raise ValueError(
            f"{name!a} is {array.stype[:40]!a} of {array.dtype[:40]!a}, not float32 as it is"
        )
    sent = tuple(array.shape)
    if len(sent) > _MOST_DIMENSIONS or sent != shape:
        raise ValueError(f"{name!a} is {sent[:_MOST_DIMENSIONS]}, not {shape[:_MOST_DIMENSIONS]}")
    if any(type(size) is not int or not 0 <= size < 2**40 for size in sent):
        raise ValueError(f"{name!a} has no shape that an array can have")
    if len(array.data) != _WIDTH * prod(sent):
        raise ValueError(f"{name!a} has {len(array.data)} bytes for {prod(sent)} numbers")


def _tensor(array: Array) -> Tensor:
    shape = tuple(array.shape)
    if not array.data:
        return torch.empty(shape)
    values = np.frombuffer(array.data, dtype="<f4").astype(np.float32)  # a copy, in native order
    return torch.from_numpy(values).reshape(shape)
