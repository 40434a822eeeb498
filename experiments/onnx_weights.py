"""Tensors and nodes of an ONNX file, read without the onnx package: enough to lift weights out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

_GRAPH = 7  # of ModelProto
_NODE, _TENSOR = 1, 5  # of GraphProto
_DTYPES = {1: np.float32, 7: np.int64, 10: np.float16, 11: np.float64}  # TensorProto.DataType


class Node(NamedTuple):
    """One operation of the graph, e.g. ``MatMul``."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(file: Path) -> tuple[dict[str, np.ndarray], list[Node]]:
    """Initialisers by name, and the nodes in the graph's order."""
    tensors: dict[str, np.ndarray] = {}
    nodes: list[Node] = []
    for field, graph in _fields(file.read_bytes()):
        for inner, value in _fields(graph) if field == _GRAPH else ():
            if inner == _TENSOR:
                name, array = _tensor(value)
                tensors[name] = array
            elif inner == _NODE:
                nodes.append(_node(value))
    return tensors, nodes


def _node(message: bytes) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 4: []}
    for field, value in _fields(message):
        if field in texts:
            texts[field].append(value.decode())
    return Node("".join(texts[4]), tuple(texts[1]), tuple(texts[2]))


def _tensor(message: bytes) -> tuple[str, np.ndarray]:
    shape: list[int] = []
    dtype, name, raw = 1, "", b""
    for field, value in _fields(message):
        if field == 1:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif field == 2:
            dtype = value
        elif field == 8:
            name = value.decode()
        elif field in (4, 9):  # floats, packed; or raw bytes
            raw += value
    array = np.frombuffer(raw, _DTYPES.get(dtype, np.uint8))
    return name, array.reshape(shape) if array.size == np.prod(shape) else array


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The number and value of every field of a message: an integer, or bytes."""
    for field in UnknownFieldSet(Empty.FromString(message)):
        yield field.field_number, field.data


def _varints(packed: bytes) -> list[int]:
    """Integers in protobuf's packed form: seven bits a byte, the lowest first."""
    values, value, shift = [], 0, 0
    for byte in packed:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value = shift = 0
    return values
