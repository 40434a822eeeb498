"""A site's rows: texts or image files, with labels where there are any. No model, no tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.records import Record, is_utf8, records_of
from layerweld.config import CalibrationSettings
from layerweld.errors import DataError
from layerweld.foreign_files import check_readable

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class Rows:
    """What a site reads: inputs in the order of their file, and their classes.

    Attributes:
        inputs: texts, or image files.
        labels: index into ``classes`` of each input; None for data without labels.
        classes: class names, sorted; empty without labels.
        skipped: rows that could not be read and are not among ``inputs``.
        digest: SHA-256 over the inputs (of an image: its bytes) and the names of their classes.
    """

    inputs: Sequence[str] | Sequence[Path]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    skipped: int
    digest: str

    def __len__(self) -> int:
        return len(self.inputs)


def make_rows(
    inputs: Sequence[str] | Sequence[Path],
    names: Sequence[str] | None,
    classes: Iterable[str] = (),
    skipped: int = 0,
) -> Rows:
    """Rows from inputs and the class name of each.

    Args:
        inputs: texts, or image files.
        names: class name of each input; None without labels.
        classes: further classes that exist, whether or not an input belongs to them.
        skipped: rows that were unreadable.
    """
    known = tuple(sorted({*classes, *(names or ())}))
    index = {name: i for i, name in enumerate(known)}
    labels = None if names is None else tuple(index[name] for name in names)
    return Rows(inputs, labels, known, skipped, _digest(inputs, names))


def chosen_rows(rows: Rows, places: Sequence[int]) -> Rows:
    """Some of the rows, by their places; classes that none of them is of are still there."""
    labels = rows.labels
    names = None if labels is None else [rows.classes[labels[i]] for i in places]
    inputs = [rows.inputs[i] for i in places]
    return make_rows(inputs, names, rows.classes, rows.skipped)  # type: ignore[arg-type]


def read_rows(source: Path, settings: CalibrationSettings, reads_images: bool) -> Rows:
    """Read every row of a file or folder.

    Args:
        source: JSON lines, CSV or Parquet; a folder that ``datasets`` saved to disk; or, for
            images, a folder of images or of one sub-folder per class.
        settings: names of the columns, and how many rows may be unreadable.
        reads_images: whether the model's input is pixels.

    Raises:
        DataError: the source is missing, empty, of an unknown kind, has no such column, or more
            of its rows are unreadable than ``calibration.max-unreadable`` allows.
    """
    check_readable(source, DataError)
    if not source.exists():
        raise DataError(f"there is no data at {source}; check the site's `data` path")
    if reads_images:
        rows, broken = _read_images(source)
    else:
        rows, broken = _read_texts(source, settings)
    _refuse_too_many_unreadable(source, rows, broken, settings)
    return rows


def _refuse_too_many_unreadable(
    source: Path, rows: Rows, broken: list[str], settings: CalibrationSettings
) -> None:
    total = len(rows) + len(broken)
    if not total:
        raise DataError(f"{source} holds no rows at all")
    if len(broken) > settings.max_unreadable * total or not len(rows):
        # Where no row is readable, no share helps.
        or_raise = f", or raise `calibration.max-unreadable` (now {settings.max_unreadable:g})"
        raise DataError(
            f"{len(broken)} of {total} rows in {source} are unreadable, the first is {broken[0]}; "
            f"mend them{or_raise if len(rows) else ''}"
        )


def _read_texts(source: Path, settings: CalibrationSettings) -> tuple[Rows, list[str]]:
    texts: list[str] = []
    names: list[str] = []
    broken: list[str] = []
    columns: dict[str, None] = {}
    records = list(records_of(source, settings.text_column, settings.label_column))
    for _, record in records:
        columns |= dict.fromkeys(record if isinstance(record, dict) else ())
    _require_column(source, settings.text_column, columns, any_rows=bool(records))
    label_column = settings.label_column if settings.label_column in columns else None
    for where, record in records:
        row = _readable(record, settings.text_column, label_column)
        if isinstance(row, str):
            broken.append(f"{where}: {row}")
        else:
            texts.append(row[0])
            names.append(row[1])
    named = None if label_column is None else names
    return make_rows(texts, named, skipped=len(broken)), broken


def _readable(
    record: Record | str, text_column: str, label_column: str | None
) -> tuple[str, str] | str:
    """Text and class name (empty without labels), or why the row is unreadable.

    A reason goes into messages and logs: it quotes nothing of the row.
    """
    if isinstance(record, str):
        return record
    text = _text(record.get(text_column))
    name = "" if label_column is None else _class_name(record.get(label_column))
    if text is None:
        return f"no text in column {text_column!r}"
    if name is None:
        return f"no label in column {label_column!r}"
    for column, value in ((text_column, text), (label_column, name)):
        if not is_utf8(value):
            return f"column {column!r} is not UTF-8"
    return text, name


def _require_column(source: Path, column: str, columns: Iterable[str], any_rows: bool) -> None:
    there = sorted(filter(is_utf8, columns))
    if any_rows and there and column not in there:
        meant = [name for name in there if name.strip().casefold() == column.casefold()]
        raise DataError(
            f"{source} has no column {column!r}; it has {', '.join(there)}: "
            f"set `calibration.text-column`{f' to {meant[0]!r}' if meant else ''}, or the site's "
            f"own `text-column`"
        )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _class_name(value: Any) -> str | None:
    """The label as text, the same for 1, 1.0 and "1"; None where it is missing or a structure."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and value == value):
        return str(value)
    return _text(value)


def _read_images(folder: Path) -> tuple[Rows, list[str]]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file, but the base model reads images: give a folder of images, or "
            f"one with a sub-folder for each class"
        )
    flat = _images_in(folder.iterdir())
    nested = {f.name: _images_in(f.rglob("*")) for f in folder.iterdir() if f.is_dir()}
    if flat and any(nested.values()):
        raise DataError(
            f"{folder} holds both images ({flat[0].name}, …) and class sub-folders; move the "
            f"images into a sub-folder, or remove the sub-folders"
        )
    files = flat or [file for name in sorted(nested) for file in nested[name]]
    broken = {file for file in files if not _decodes(file)}
    kept = [file for file in files if file not in broken]
    names = None if flat or not kept else [file.relative_to(folder).parts[0] for file in kept]
    where = [f"file {file.relative_to(folder)}: no whole image" for file in files if file in broken]
    return make_rows(kept, names, skipped=len(where)), where


def _images_in(files: Iterable[Path]) -> list[Path]:
    return sorted(f for f in files if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != ".")


def _decodes(file: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.draft("RGB", (64, 64))  # a JPEG is decoded at an eighth of the cost
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises
        return False
    return True


def _digest(inputs: Sequence[str] | Sequence[Path], names: Sequence[str] | None) -> str:
    digest = hashlib.sha256()
    for i, item in enumerate([*inputs]):
        content = item.read_bytes() if isinstance(item, Path) else item.encode()
        name = b"" if names is None else names[i].encode()
        digest.update(f"{len(content)} {len(name)} ".encode() + content + name)
    return digest.hexdigest()
