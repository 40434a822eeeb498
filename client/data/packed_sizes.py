"""What Parquet pages and Arrow messages unpack to, by their own headers: nothing is unpacked.

The footer of a Parquet file says it as well, but may lie: the reader takes memory by the header of
each page. Formats: parquet.thrift's ``PageHeader`` in Thrift's compact protocol,
Arrow's ``Message.fbs`` as a flat buffer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

_USUAL_HEADER = 4096  # bytes of a page's
_LONGEST_HEADER = 2**20
_MOST_PAGES = 1_000_000
_DEEPEST = 16  # structures in structures

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12


def unpacked_pages(file: Path, columns: Iterable[Any]) -> int:
    """Bytes that all pages of some column chunks unpack to.

    Args:
        file: of Parquet.
        columns: their metadata, as pyarrow has it.

    Raises:
        ValueError: a header is damaged, or there are too many pages.
        IndexError: likewise.
    """
    total = pages = 0
    with file.open("rb") as opened:
        for column in columns:
            first, dictionary = column.data_page_offset, column.dictionary_page_offset
            place = min(first, dictionary) if dictionary else first
            end = place + column.total_compressed_size
            while place < end:
                length, unpacked, packed = _page(opened, place)
                total, place, pages = total + unpacked, place + length + packed, pages + 1
                if min(unpacked, packed) < 0 or pages > _MOST_PAGES:
                    raise ValueError("its pages have impossible sizes, or are too many")
    return total


def is_compressed(message: bytes) -> bool:
    """Whether the buffers of an Arrow record batch or dictionary have to be unpacked.

    Args:
        message: its metadata.
    """
    header = _reference(message, _root(message), 2)
    kind = message[_field(message, _root(message), 1)]
    batch = _reference(message, header, 1) if kind == 2 else header  # a dictionary holds a batch
    return kind in (2, 3) and _field(message, batch, 3) != 0


def _page(opened: BinaryIO, place: int) -> tuple[int, int, int]:
    """Length of a page's header, and what the page unpacks to and is packed in."""
    for size in (_USUAL_HEADER, _LONGEST_HEADER):
        opened.seek(place)
        content = opened.read(size)
        try:
            return _Compact(content).page_header()
        except IndexError:
            if len(content) < size:
                raise
    raise ValueError("a page's header is too long")


class _Compact:
    """A reader of Thrift's compact protocol that knows two fields of one structure."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def page_header(self) -> tuple[int, int, int]:
        """Its length, ``uncompressed_page_size`` and ``compressed_page_size``."""
        sizes = {2: -1, 3: -1}
        field = 0
        while byte := self._byte():
            field = field + (byte >> 4) if byte >> 4 else self._number()
            if field in sizes:
                sizes[field] = self._number()
            else:
                self._skip(byte & 15, 0)
        return self._place, sizes[2], sizes[3]

    def _byte(self) -> int:
        self._place += 1
        return self._content[self._place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number is too long")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, kind: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise ValueError("structures nested too deeply")
        if kind in (_TRUE, _FALSE):
            return
        if kind in (_BYTE, _DOUBLE):
            self._place += 1 if kind == _BYTE else 8
        elif kind == _BINARY:
            length = self._varint()  # which moves the place
            self._place += length
        elif kind in (_LIST, _SET):
            self._skip_list(depth)
        elif kind == _STRUCT:
            while byte := self._byte():
                if not byte >> 4:
                    self._number()
                self._skip(byte & 15, depth + 1)
        else:
            self._varint()

    def _skip_list(self, depth: int) -> None:
        byte = self._byte()
        count = byte >> 4 if byte >> 4 < 15 else self._varint()
        for _ in range(min(count, len(self._content) + 1)):
            self._skip(_BYTE if byte & 15 in (_TRUE, _FALSE) else byte & 15, depth + 1)


def _root(message: bytes) -> int:
    place: int = struct.unpack_from("<I", message)[0]
    return place


def _field(message: bytes, table: int, number: int) -> int:
    """Where a field of a table begins; 0 where the table does not have it."""
    names = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, names)[0]
    entry = 4 + 2 * number
    offset: int = struct.unpack_from("<H", message, names + entry)[0] if entry < size else 0
    return table + offset if offset else 0


def _reference(message: bytes, table: int, number: int) -> int:
    """The table that a field refers to."""
    place = _field(message, table, number)
    target: int = place + struct.unpack_from("<I", message, place)[0]
    return target
