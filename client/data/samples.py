"""A site's samples: texts or image files, with labels if there are any. No model, no tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.data.columns import Columns, Record
from client.data.images import images_in, why_unreadable
from client.data.records import is_utf8, records_of
from layerweld.errors import DataError
from layerweld.settings.run import CalibrationSettings
from layerweld.untrusted.files import check_readable
from layerweld.untrusted.text import quoted

_SHOWN_COLUMNS = 20
_LONGEST_SHOWN = 80  # characters


@dataclass(frozen=True)
class Dataset:
    """What a site reads: inputs in the order of their file, and their classes.

    Attributes:
        inputs: texts, or image files.
        labels: index into ``classes`` of each input; None for data without labels.
        classes: class names, sorted; empty without labels.
        skipped: how many samples could not be read; they are not among ``inputs``.
        digest: SHA-256 over the inputs (of an image: its bytes) and the names of their classes.
    """

    inputs: Sequence[str] | Sequence[Path]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    skipped: int
    digest: str

    def __len__(self) -> int:
        return len(self.inputs)


def make_dataset(
    inputs: Sequence[str] | Sequence[Path],
    names: Sequence[str] | None,
    classes: Iterable[str] = (),
    skipped: int = 0,
) -> Dataset:
    """Samples from inputs and the class name of each.

    Args:
        inputs: texts, or image files.
        names: class name of each input; None without labels.
        classes: further classes that exist, even if no input belongs to them.
        skipped: how many samples were unreadable.
    """
    known = tuple(sorted({*classes, *(names or ())}))
    index = {name: i for i, name in enumerate(known)}
    labels = None if names is None else tuple(index[name] for name in names)
    return Dataset(inputs, labels, known, skipped, _digest(inputs, names))


def subset(dataset: Dataset, places: Sequence[int]) -> Dataset:
    """Some of the samples, by their places; classes without a sample stay."""
    labels = dataset.labels
    names = None if labels is None else [dataset.classes[labels[i]] for i in places]
    inputs = [dataset.inputs[i] for i in places]
    return make_dataset(inputs, names, dataset.classes, dataset.skipped)  # type: ignore[arg-type]


def read_dataset(source: Path, settings: CalibrationSettings, reads_images: bool) -> Dataset:
    """Read every sample of a file or folder.

    Args:
        source: JSON lines, CSV or Parquet; a folder that ``datasets`` saved to disk; or, for
            images, a folder of images or of one sub-folder per class.
        settings: names of the columns, and how many samples may be unreadable.
        reads_images: whether the model's input is pixels.

    Raises:
        DataError: the source is missing, empty, of an unknown kind, has no such column, or more
            of its samples are unreadable than ``calibration.max-unreadable`` allows.
    """
    check_readable(source, DataError)
    if not source.exists():
        raise DataError(f"there is no data at {source}; check the site's `data` path")
    if reads_images:
        dataset, broken = _read_images(source)
    else:
        dataset, broken = _read_texts(source, settings)
    _refuse_too_many_unreadable(source, dataset, broken, settings)
    return dataset


class _Unreadable:
    """How many samples are unreadable, and why the first of them is."""

    def __init__(self) -> None:
        self.count = 0
        self._first: tuple[int, str] | None = None

    @property
    def first(self) -> str:
        """Place and reason of the first one."""
        return self._first[1] if self._first else ""

    def add(self, place: int, where: str, reason: str) -> None:
        """Count a sample, by its place among all."""
        self._note(1, (place, f"{where}: {reason}"))

    def join(self, other: _Unreadable) -> None:
        """Add the count of another."""
        if other._first:
            self._note(other.count, other._first)

    def _note(self, count: int, first: tuple[int, str]) -> None:
        self.count += count
        self._first = first if self._first is None else min(self._first, first)


def _refuse_too_many_unreadable(
    source: Path, dataset: Dataset, broken: _Unreadable, settings: CalibrationSettings
) -> None:
    total = len(dataset) + broken.count
    if not total:
        raise DataError(f"{source} holds no samples")
    if broken.count > settings.max_unreadable * total or not len(dataset):
        # If no sample is readable, no share helps.
        or_raise = f", or raise `calibration.max-unreadable` (now {settings.max_unreadable:g})"
        raise DataError(
            f"{broken.count} of {total} samples in {source} are unreadable, the first is "
            f"{broken.first}; fix them{or_raise if len(dataset) else ''}"
        )


def _read_texts(source: Path, settings: CalibrationSettings) -> tuple[Dataset, _Unreadable]:
    columns = Columns(settings.text_column, settings.label_column)
    texts: list[str] = []
    names: list[str | None] = []
    broken, unlabelled = _Unreadable(), _Unreadable()
    for place, (where, record) in enumerate(records_of(source, columns)):
        sample = _readable(record, columns)
        if isinstance(sample, str):
            broken.add(place, where, sample)
            continue
        texts.append(sample[0])
        names.append(sample[1])
        if sample[1] is None:
            unlabelled.add(place, where, f"no label in column {columns.label!r}")
    _require_column(source, columns, any_rows=bool(texts or broken.count))
    if columns.label not in columns.met:
        return make_dataset(texts, None, skipped=broken.count), broken
    broken.join(unlabelled)
    texts = [text for text, name in zip(texts, names, strict=True) if name is not None]
    named = [name for name in names if name is not None]
    return make_dataset(texts, named, skipped=broken.count), broken


def _readable(record: Record | str, columns: Columns) -> tuple[str, str | None] | str:
    """Text and class name (None without one), or why the sample is unreadable.

    A reason goes into messages and logs, so it quotes nothing of the sample.
    """
    if isinstance(record, str):
        return record
    text = _text(record.get(columns.text))
    name = _class_name(record.get(columns.label))
    if text is None:
        return f"no text in column {columns.text!r}"
    for column, value in ((columns.text, text), (columns.label, name)):
        if value is not None and not is_utf8(value):
            return f"column {column!r} is not UTF-8"
    return text, name


def _require_column(source: Path, columns: Columns, any_rows: bool) -> None:
    there = sorted(filter(is_utf8, columns.met))
    column = columns.text
    if any_rows and there and column not in there:
        meant = [name for name in there if name.strip().casefold() == column.casefold()]
        more = f", and {len(there) - _SHOWN_COLUMNS} more" if len(there) > _SHOWN_COLUMNS else ""
        raise DataError(
            f"{source} has no column {column!r}; it has "
            f"{', '.join(map(_plain, there[:_SHOWN_COLUMNS]))}{more}: "
            f"set `calibration.text-column`{f' to {meant[0]!r}' if meant else ''}, or the site's "
            f"own `text-column`"
        )


def _plain(name: str) -> str:
    plain = name.isprintable() and name and len(name) <= _LONGEST_SHOWN
    return name if plain else quoted(name, _LONGEST_SHOWN)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _class_name(value: Any) -> str | None:
    """The label as text, the same for 1, 1.0 and "1"; None if it is missing or a structure."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and value == value):
        return str(value)
    return _text(value)


def _read_images(folder: Path) -> tuple[Dataset, _Unreadable]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file, but the base model reads images: give a folder of images, or "
            f"one with a sub-folder for each class"
        )
    flat = images_in(folder.iterdir())
    nested = {f.name: images_in(f.rglob("*")) for f in folder.iterdir() if f.is_dir()}
    if flat and any(nested.values()):
        raise DataError(
            f"{folder} holds both images ({flat[0].name}, …) and class sub-folders; move the "
            f"images into a sub-folder, or remove the sub-folders"
        )
    files = flat or [file for name in sorted(nested) for file in nested[name]]
    kept, broken = [], _Unreadable()
    for place, file in enumerate(files):
        reason = why_unreadable(file)
        if reason:
            broken.add(place, f"file {_plain(str(file.relative_to(folder)))}", reason)
        else:
            kept.append(file)
    names = None if flat or not kept else [file.relative_to(folder).parts[0] for file in kept]
    return make_dataset(kept, names, skipped=broken.count), broken


def _digest(inputs: Sequence[str] | Sequence[Path], names: Sequence[str] | None) -> str:
    digest = hashlib.sha256()
    for i, item in enumerate([*inputs]):
        content = item.read_bytes() if isinstance(item, Path) else item.encode()
        name = b"" if names is None else names[i].encode()
        digest.update(f"{len(content)} {len(name)} ".encode() + content + name)
    return digest.hexdigest()
