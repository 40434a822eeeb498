"""Steps or rounds on disk, one checked file each: what a killed server goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from layerweld.errors import JournalError
from layerweld.untrusted.files import reading
from server.hashed_files import read_hashed, read_metadata, write_hashed
from strategies.notices import notice


class Numbered(Protocol):
    """Something that has its place in a row, and lacks some of the sites."""

    @property
    def index(self) -> int:
        """The place, from 0."""

    @property
    def lost(self) -> Collection[str]:
        """Names of the sites that it lacks."""


N = TypeVar("N", bound=Numbered)
Contents = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors by name, and everything else as JSON values."""


class NumberedFiles(Generic[N]):
    """The files of one method in one folder.

    Args:
        folder: created with the first file.
        kind: what one of them is, in a word: it begins the files' names.
        encode: one of them as the contents of a file.
        decode: the reverse; raises ValueError, TypeError or KeyError where that cannot be done.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        encode: Callable[[N], Contents],
        decode: Callable[[Mapping[str, Tensor], Mapping[str, Any]], N],
    ) -> None:
        self._folder = folder
        self._kind = kind
        self._encode = encode
        self._decode = decode

    def load(self) -> Sequence[N]:
        """All that were kept, in order.

        A last file that does not match its hash was being written when the power went: it is left
        out, and what it held is done again.

        Raises:
            JournalError: an earlier file is damaged or missing.
        """
        found = self._whole(self._files)
        for place, kept in enumerate(found):
            if kept.index != place:
                raise JournalError(
                    f"{self._folder} lacks {self._kind} {place}; remove the later files to go on "
                    f"from it"
                )
        return found

    def lost(self) -> set[str]:
        """Names of the sites that any of them lacks.

        Only the last file, which may be left out, is read as a whole and compared with its hash.
        Those before it are once they are loaded.

        Raises:
            JournalError: what an earlier file says of itself cannot be read.
        """
        files = self._files
        lost = [self._lost(file) for file in files[:-1]]
        lost += [kept.lost for kept in self._whole(files[-1:])]
        return {site for names in lost for site in names}

    def keep(self, kept: N) -> None:
        """Write one: it is whole or not there.

        Raises:
            StorageError: it cannot be written; those before it are untouched.
        """
        tensors, figures = self._encode(kept)
        file = self._folder / f"{self._kind}-{kept.index:05d}.safetensors"
        write_hashed(
            file, tensors, {"figures": json.dumps(figures, sort_keys=True, allow_nan=False)}
        )

    @property
    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._kind}-*.safetensors"))

    def _whole(self, files: Sequence[Path]) -> list[N]:
        """Of the files up to the last one; that is left out where it is damaged."""
        found: list[N] = []
        for file in files:
            try:
                found.append(self._read(file))
            except JournalError as error:
                if file != files[-1]:
                    raise
                notice(f"{error}: that {self._kind} is done again")
        return found

    def _read(self, file: Path) -> N:
        tensors, metadata = read_hashed(file)
        with self._decoding(file):
            return self._decode(tensors, json.loads(metadata["figures"]))

    def _lost(self, file: Path) -> Collection[str]:
        metadata = read_metadata(file)
        with self._decoding(file):
            return [str(site) for site in json.loads(metadata["figures"])["lost"]]

    @contextmanager
    def _decoding(self, file: Path) -> Iterator[None]:
        remedy = f"remove it to do that {self._kind} again"
        with reading(f"{file} cannot be read", remedy, JournalError):
            yield
