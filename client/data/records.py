"""The samples of a file as records: JSON lines, CSV, Parquet, saved datasets."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from client.data.columns import Columns, Record
from client.data.table_files import parquet_records, saved_dataset_records
from layerweld.errors import DataError
from layerweld.untrusted.documents import refuse_wide

LONGEST_ROW = 16 * 2**20
"""Bytes of one line of JSON, or characters of one row of a CSV: a text of millions of tokens."""

_BROKEN_QUOTES = "its quotes are broken, or not closed"
_TOO_LONG = f"longer than {LONGEST_ROW // 2**20} MiB"


def records_of(source: Path, columns: Columns) -> Iterator[tuple[str, Record | str]]:
    """The place and content of each sample, or why it has none.

    One sample is in memory at a time. Bytes that are not UTF-8 may be left in a content, as halves
    of surrogate pairs.

    Args:
        source: a file, or a folder that ``datasets`` saved to disk.
        columns: the wanted columns; those that the source has are noted there. If the text column
            is missing, a CSV header in another encoding or with another separator is refused. A
            missing label column is refused only if its name is not ASCII: labels are optional.

    Raises:
        DataError: the source is damaged, of an unknown kind, or has such a header.
    """
    if source.is_dir():
        return saved_dataset_records(source, columns)
    match source.suffix.lower():
        case ".jsonl" | ".ndjson" | ".json":
            return _json_records(source, columns)
        case ".csv":
            return _csv_records(source, columns)
        case ".parquet":
            return parquet_records(source, columns)
    raise DataError(
        f"{source} is neither JSON lines (.jsonl), CSV (.csv) nor Parquet (.parquet); "
        f"convert it to one of these"
    )


def is_utf8(text: str) -> bool:
    """False for half a surrogate pair, or bytes that were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_records(source: Path, columns: Columns) -> Iterator[tuple[str, Record | str]]:
    if _is_json_array(source):
        raise DataError(f"{source} is a JSON array; write one object per line")
    with source.open("rb") as opened:
        for number, line in enumerate(_lines(opened), start=1):
            if line is None:
                yield f"line {number}", _TOO_LONG
            elif line.strip():
                yield f"line {number}", _parsed(line, columns)


def _lines(opened: BinaryIO) -> Iterator[bytes | None]:
    """Each line; None for one that is too long, of which only a part was ever in memory."""
    while line := opened.readline(LONGEST_ROW + 1):
        if len(line) <= LONGEST_ROW:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = opened.readline(LONGEST_ROW)
        yield None


def _is_json_array(source: Path) -> bool:
    with source.open("rb") as opened:
        first = next((line for line in _lines(opened) if line is None or line.strip()), b"") or b""
    refuse_wide(source, first, DataError)
    if not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return False
    # In a file too large to be parsed at once, a first line that is not JSON begins an array.
    whole = source.read_bytes() if source.stat().st_size <= LONGEST_ROW else first
    try:
        json.loads(whole)
    except (ValueError, RecursionError):
        return whole is first
    return whole is not first


def _parsed(line: bytes, columns: Columns) -> Record | str:
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8"
    except json.JSONDecodeError as error:
        return f"not a JSON object, from column {error.colno} on"
    except RecursionError:
        return "not a JSON object: brackets nested too deeply"
    except ValueError:  # an integer of thousands of digits
        return "not a JSON object that can be read"
    return columns.of(record) if isinstance(record, dict) else "not a JSON object"


def _csv_records(source: Path, columns: Columns) -> Iterator[tuple[str, Record | str]]:
    with source.open("rb") as start:
        refuse_wide(source, start.read(2), DataError)
    csv.field_size_limit(LONGEST_ROW)  # its own, 131,072 characters, is shorter than a long text
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        rows = _csv_rows(_CsvLines(opened))
        header = next(rows, ([], 0, 0))[0]
        if isinstance(header, str):
            raise DataError(f"{source}: the header cannot be read: {header}; fix it")
        _check_header(source, header, columns)
        columns.meet(header)
        places = {name: i for i, name in enumerate(header) if name in columns.wanted}
        for fields, first, last in rows:
            if isinstance(fields, list) and len(fields) == len(header):
                yield f"line {first}", {name: fields[i] for name, i in places.items()}
            elif fields != []:  # a blank line is not a sample
                for number in range(first, last + 1):  # an open quote swallows many lines
                    yield f"line {number}", _misfit(fields, header)


def _check_header(source: Path, header: list[str], columns: Columns) -> None:
    has_text = columns.text in header
    may_lack_label = columns.label in header or columns.label.isascii()
    if not all(map(is_utf8, header)) and not (has_text and may_lack_label):
        raise DataError(
            f"{source}: the header is not UTF-8; convert the file (iconv -f latin1 -t utf8)"
        )
    if len(header) == 1 and not has_text:
        for separator, name in ((";", "';'"), ("\t", "tabs")):
            if separator in header[0]:
                raise DataError(
                    f"{source} seems to use {name} as its separator; convert it to commas"
                )


def _misfit(fields: list[str] | str, header: list[str]) -> str:
    if isinstance(fields, str):
        return fields
    return f"{len(fields)} fields, but the header has {len(header)}"


class _CsvLines:
    """Lines for csv's reader, which alone would let one row grow to the whole file.

    Attributes:
        number: of the last line, from 1.
        row: characters of the current row; set it to 0 where a row begins.
    """

    def __init__(self, opened: TextIO) -> None:
        self._opened = opened
        self.number = 0
        self.row = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = self._opened.readline(LONGEST_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.row += len(line)
        if self.row > LONGEST_ROW:
            while line and not line.endswith(("\n", "\r")):
                line = self._opened.readline(LONGEST_ROW)
            raise csv.Error(_TOO_LONG)
        return line


def _csv_rows(lines: _CsvLines) -> Iterator[tuple[list[str] | str, int, int]]:
    """Fields of each row, or why it has none, with its first and last line."""
    reader = csv.reader(lines, strict=True)
    while True:
        first, lines.row = lines.number + 1, 0
        fields: list[str] | str
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fields = _TOO_LONG if lines.row > LONGEST_ROW else _BROKEN_QUOTES
        yield fields, first, lines.number
