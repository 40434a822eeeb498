"""The rows of a file as records: JSON lines, CSV, Parquet, saved datasets."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from layerweld.errors import DataError

Record = dict[str, Any]
_LONGEST_FIELD = 2**31 - 1  # csv's own limit of 131,072 characters is shorter than a long text


def records_of(
    source: Path, text_column: str, label_column: str
) -> Iterator[tuple[str, Record | str]]:
    """Each row's place and content, or why it has none.

    Bytes that are not UTF-8 may be left in a content as halves of surrogate pairs.

    Args:
        source: a file, or a folder that ``datasets`` saved to disk.
        text_column: without it a header in another encoding or with another separator is refused.
        label_column: likewise; but rows may have no labels, so only if its name is not ASCII.

    Raises:
        DataError: the source is damaged, of an unknown kind, or has such a header.
    """
    if source.is_dir():
        return _saved_dataset_records(source)
    match source.suffix.lower():
        case ".jsonl" | ".ndjson" | ".json":
            return _json_records(source)
        case ".csv":
            return _csv_records(source, text_column, label_column)
        case ".parquet":
            return _parquet_records(source)
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


def _json_records(source: Path) -> Iterator[tuple[str, Record | str]]:
    if _is_json_array(source):
        raise DataError(f"{source} is a JSON array; write one object per line")
    with source.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"line {number}", _parsed(line)


def _is_json_array(source: Path) -> bool:
    with source.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    if not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return False
    try:
        json.loads(source.read_bytes())
    except (ValueError, RecursionError):  # lines, of which the first is an array
        return False
    return True


def _parsed(line: bytes) -> Record | str:
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8"
    except json.JSONDecodeError as error:
        return f"no JSON object, from column {error.colno} on"
    except RecursionError:
        return "no JSON object, but brackets in brackets"
    except ValueError:  # an integer of thousands of digits
        return "no JSON object that can be read"
    return record if isinstance(record, dict) else "no JSON object"


def _csv_records(
    source: Path, text_column: str, label_column: str
) -> Iterator[tuple[str, Record | str]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = _csv_rows(lines)
        header = next(rows, ([], 0, 0))[0] or []
        _check_header(source, header, text_column, label_column)
        for fields, first, last in rows:
            if fields is not None and len(fields) == len(header):
                yield f"line {first}", dict(zip(header, fields, strict=True))
            elif fields != []:  # a blank line is nobody's row
                for number in range(first, last + 1):  # an open quote swallows many lines
                    yield f"line {number}", _misfit(fields, header)


def _check_header(source: Path, header: list[str], text_column: str, label_column: str) -> None:
    has_text = text_column in header
    may_lack_label = label_column in header or label_column.isascii()
    if not all(map(is_utf8, header)) and not (has_text and may_lack_label):
        raise DataError(
            f"{source}: the header is not UTF-8; convert the file (iconv -f latin1 -t utf8)"
        )
    if len(header) == 1 and not has_text:
        for separator, name in ((";", "';'"), ("\t", "tabs")):
            if separator in header[0]:
                raise DataError(f"{source} seems to be separated by {name}; convert it to commas")


def _misfit(fields: list[str] | None, header: list[str]) -> str:
    if fields is None:
        return "its quotes are broken, or not closed"
    return f"{len(fields)} fields, but the header has {len(header)}"


def _csv_rows(lines: Iterable[str]) -> Iterator[tuple[list[str] | None, int, int]]:
    """Fields of each row, None where its quotes are broken, with its first and last line."""
    reader = csv.reader(lines, strict=True)
    while True:
        first = reader.line_num + 1
        fields: list[str] | None = None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            pass
        yield fields, first, reader.line_num


def _parquet_records(source: Path) -> Iterator[tuple[str, Record | str]]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        rows = parquet.read_table(source).to_pylist()
    except arrow.ArrowException as error:
        raise DataError(f"{source} is damaged, or no Parquet file: {error}") from error
    for number, record in enumerate(rows, start=1):
        yield f"row {number}", record


def _saved_dataset_records(folder: Path) -> Iterator[tuple[str, Record | str]]:
    import pyarrow as arrow

    if not (folder / "state.json").is_file():
        raise DataError(
            f"{folder} is no folder of `datasets.save_to_disk` with a single split (it has no "
            f"state.json); name one of its splits, or a file"
        )
    rows: list[Record] = []
    try:
        for file in json.loads((folder / "state.json").read_bytes())["_data_files"]:
            with arrow.memory_map(str(folder / file["filename"])) as stream:
                rows += arrow.ipc.open_stream(stream).read_all().to_pylist()
    except (OSError, KeyError, ValueError, arrow.ArrowException) as error:
        raise DataError(f"{folder} is damaged, save the dataset again: {error!r}") from error
    for number, record in enumerate(rows, start=1):
        yield f"row {number}", record
