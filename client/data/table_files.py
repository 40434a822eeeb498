"""Samples of Parquet files and of folders that ``datasets`` saved, a few at a time.

Only the wanted columns are decoded: the rest of a file costs nothing and cannot fail. A few bytes
of either format may stand for any number of samples, so everything that comes out is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from client.data.columns import Columns, Record
from client.data.packed_sizes import is_compressed, unpacked_pages
from layerweld.errors import DataError
from layerweld.untrusted.documents import read_json
from layerweld.untrusted.files import check_readable, reading
from layerweld.untrusted.text import quoted

_ROWS_AT_ONCE = 1024
_ALWAYS = 256 * 2**20  # bytes that may come out of any file, however small
_RATIO = 100  # bytes that may come out of a larger one, for each of its own
_OVERHEAD = 64  # bytes that any sample counts for
_LONGEST_NAME = 2**20  # bytes of a string in a Parquet file's footer
_LONGEST_FILE_NAME = 255
_TEXT = "BYTE_ARRAY"
_AGAIN = "write or copy it again"


def parquet_records(source: Path, columns: Columns) -> Iterator[tuple[str, Record | str]]:
    """The rows of a Parquet file; see :func:`client.data.records.records_of`."""
    import pyarrow.parquet as parquet

    with reading(f"{source} is damaged, or not a Parquet file", _AGAIN, DataError):
        limits = {
            "thrift_string_size_limit": _LONGEST_NAME,
            "thrift_container_size_limit": _LONGEST_NAME,
            "arrow_extensions_enabled": False,
            "pre_buffer": False,
        }
        with parquet.ParquetFile(source, **limits) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
        columns.meet(schema.names)
        if columns.text not in schema.names:
            yield from [("row 1", {})] * bool(metadata.num_rows)
            return
        wanted = [
            name for name in columns.wanted if name in schema.names and _is_flat(schema, name)
        ]
        if columns.text not in wanted:
            kind = quoted(str(schema.field(columns.text).type))
            raise DataError(f"{source}: column {columns.text!r} holds {kind}, not text")
        budget = _Budget(source, source.stat().st_size)
        texts = _check_claims(source, metadata, wanted, budget)
        # As a dictionary a long text that repeats is held once.
        with parquet.ParquetFile(source, read_dictionary=texts, **limits) as opened:
            batches = opened.iter_batches(_ROWS_AT_ONCE, columns=wanted, use_threads=False)
            yield from _records(batches, wanted, budget)


def saved_dataset_records(folder: Path, columns: Columns) -> Iterator[tuple[str, Record | str]]:
    """The rows of a folder of ``datasets.save_to_disk``, as ``client.data.records`` has them."""
    state = folder / "state.json"
    if not state.is_file():
        raise DataError(
            f"{folder} is not a folder of `datasets.save_to_disk` with a single split (it has no "
            f"state.json); name one of its splits, or a file"
        )
    remedy = "save the dataset again"
    with reading(f"{folder} is damaged", remedy, DataError):
        files = [entry["filename"] for entry in read_json(state, DataError, remedy)["_data_files"]]
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or len(name) > _LONGEST_FILE_NAME:
            raise DataError(f"{state} names {quoted(name)}, not a file beside it; {remedy}")
        check_readable(folder / name, DataError)
    with reading(f"{folder} is damaged", remedy, DataError):
        size = sum((folder / name).stat().st_size for name in files)
        budget = _Budget(folder, size)
        yield from _records(_arrow_batches(folder, files, columns), columns.wanted, budget)


class _Budget:
    """How many more bytes may come out of a source.

    Args:
        source: for the message.
        size: bytes that it has on disk.
    """

    def __init__(self, source: Path, size: int) -> None:
        self._source = source
        self._most = self._left = max(_ALWAYS, _RATIO * size)

    def spend(self, size: int) -> None:
        """Count bytes that came out of it.

        Raises:
            DataError: there are more than allowed.
        """
        self._left -= size
        self.allow(0)

    def allow(self, size: int) -> None:
        """Refuse a source that has more to come than allowed.

        Raises:
            DataError: it has.
        """
        if size > self._left:
            raise DataError(
                f"{self._source} unpacks to more than {self._most // 2**20} MiB, {_RATIO} times "
                f"its size; write it again without compression"
            )


def _is_flat(schema: Any, name: str) -> bool:
    from pyarrow import types

    return not types.is_nested(schema.field(name).type)


def _check_claims(source: Path, metadata: Any, wanted: Iterable[str], budget: _Budget) -> list[str]:
    """The text columns, once everything to be unpacked is known to fit into the budget."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(j) for group in groups for j in range(group.num_columns)]
    budget.allow(unpacked_pages(source, (one for one in columns if one.path_in_schema in wanted)))
    schema = metadata.schema
    leaves = [schema.column(i) for i in range(len(schema.names))]
    return [leaf.path for leaf in leaves if leaf.path in wanted and leaf.physical_type == _TEXT]


def _arrow_batches(folder: Path, files: Iterable[str], columns: Columns) -> Iterator[Any]:
    import pyarrow as arrow

    for name in files:
        with arrow.memory_map(str(folder / name)) as mapped:
            for message in arrow.ipc.MessageReader.open_stream(mapped):
                if is_compressed(message.metadata.to_pybytes()):
                    raise ValueError("it is compressed, which `datasets` does not do")
            mapped.seek(0)
            for batch in arrow.ipc.open_stream(mapped):
                columns.meet(batch.schema.names)
                for name_of in columns.wanted:
                    if name_of in batch.schema.names:
                        batch.column(name_of).validate(full=True)  # offsets come from the file
                yield batch


def _records(
    batches: Iterable[Any], wanted: Iterable[str], budget: _Budget
) -> Iterator[tuple[str, Record]]:
    number = 0
    for batch in batches:
        there = [name for name in wanted if name in batch.schema.names]
        values = {name: _values(batch.column(name)) for name in there}
        for _ in range(batch.num_rows):
            number += 1
            record = {name: next(values[name]) for name in there}
            budget.spend(_OVERHEAD + sum(map(_size, record.values())))
            yield f"row {number}", record


def _values(column: Any) -> Iterator[Any]:
    """Python values of text and numbers; None for all other kinds, which no sample may hold."""
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        known: dict[int, Any] = {}
        for index in column.indices.to_pylist():
            if index is not None and index not in known:
                known[index] = next(_values(column.dictionary[index : index + 1]))
            yield None if index is None else known[index]
    elif types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        for value in column:
            content = value.as_buffer()
            yield (
                None if content is None else content.to_pybytes().decode("utf-8", "surrogateescape")
            )
    elif types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        yield from column.to_pylist()
    else:
        yield from (None for _ in range(len(column)))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0
