"""Tensors and nodes of an ONNX file, read without the onnx package: enough to lift weights out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_VARINT, _EIGHT_BYTES, _LENGTH_DELIMITED, _FOUR_BYTES = 0, 1, 2, 5  # protobuf's wire types
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
    for field, graph in _fields(memoryview(file.read_bytes())):
        for inner, value in _fields(graph) if field == _GRAPH else ():
            if inner == _TENSOR:
                name, array = _tensor(value)
                tensors[name] = array
            elif inner == _NODE:
                nodes.append(_node(value))
    return tensors, nodes


def _node(message: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 4: []}
    for field, value in _fields(message):
        if field in texts:
            texts[field].append(bytes(value).decode())
    return Node("".join(texts[4]), tuple(texts[1]), tuple(texts[2]))


def _tensor(message: memoryview) -> tuple[str, np.ndarray]:
    shape: list[int] = []
    dtype, name, raw = 1, "", b""
    for field, value in _fields(message):
        if field == 1:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif field == 2:
            dtype = value
        elif field == 8:
            name = bytes(value).decode()
        elif field in (4, 9):  # floats, packed; or raw bytes
            raw += bytes(value)
    array = np.frombuffer(raw, _DTYPES.get(dtype, np.uint8))
    return name, array.reshape(shape) if array.size == np.prod(shape) else array


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield field, value
            continue
        size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire)
        if wire == _LENGTH_DELIMITED:
            size, place = _varint(message, place)
        if size is None:
            raise ValueError(f"wire type {wire} at byte {place}: no ONNX file, or a damaged one")
        yield field, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place


def _varints(message: memoryview) -> list[int]:
    found, place = [], 0
    while place < len(message):
        value, place = _varint(message, place)
        found.append(value)
    return found
