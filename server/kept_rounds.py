"""Finished rounds on disk, one checked file each: what a killed server resumes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from layerweld.errors import JournalError
from layerweld.runtime.disk import writing
from layerweld.untrusted.files import check_readable, contents, reading
from layerweld.untrusted.tensors import opened_tensors
from layerweld.updates.bounds import require_finite
from strategies.notices import notice
from strategies.rounds import Kept, KeptRound

_AGAIN = "remove it to run that round again"
_HASH_SIZE = 64  # characters of a SHA-256


class RoundFiles:
    """The rounds of one method in one folder.

    Args:
        folder: created with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> Sequence[KeptRound]:
        """All rounds that were kept, in order.

        If the last file does not match its hash, it was being written when the power failed: it is
        left out, and the round is run again.

        Raises:
            JournalError: an earlier file is damaged or missing.
        """
        rounds = _whole(self._files)
        for place, kept in enumerate(rounds):
            if kept.index != place:
                raise JournalError(
                    f"{self._folder} lacks round {place}; remove the later files to resume there"
                )
        return rounds

    def lost(self) -> set[str]:
        """Names of the sites that any of the rounds lacks.

        Only the last file, which may be left out, is read as a whole and compared with its hash.
        Those before it are once they are loaded.

        Raises:
            JournalError: the metadata of an earlier file cannot be read.
        """
        files = self._files
        last = {site for kept in _whole(files[-1:]) for site in kept.lost}
        return last.union(*map(_lost, files[:-1]))

    def keep(self, round_: KeptRound) -> None:
        """Write one round: whole or not at all.

        Raises:
            StorageError: it cannot be written; those before it are untouched.
            UnusableMergeError: it holds a number that is not finite.
        """
        facts = {key: value for key, value in vars(round_).items() if key != "kept"}
        facts["metrics"] = round_.kept.metrics
        file = self._folder / f"round-{round_.index:05d}.safetensors"
        _write(file, round_.kept.tensors, json.dumps(facts, sort_keys=True, allow_nan=False))

    @property
    def are_there(self) -> bool:
        """Whether any round was kept."""
        return bool(self._files)

    @property
    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.safetensors"))


def _whole(files: Sequence[Path]) -> list[KeptRound]:
    """The rounds in the files, without the last one if that is damaged."""
    rounds = []
    for file in files:
        try:
            rounds.append(_read(file))
        except JournalError as error:
            if file != files[-1]:
                raise
            notice(f"{error}: that round is run again")
    return rounds


def _read(file: Path) -> KeptRound:
    check_readable(file, JournalError)
    expected = contents(file.with_suffix(".sha256"), JournalError, _HASH_SIZE)
    with _reading(file):
        if _digest(file).encode() != expected:
            raise JournalError(f"{file} does not match its hash; {_AGAIN}")
    with opened_tensors(file, _AGAIN, JournalError) as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() or {}
    with _reading(file):
        facts = json.loads(metadata["round"])
        kept = Kept(tensors, facts.pop("metrics"))
        return KeptRound(kept=kept, lost=tuple(facts.pop("lost")), **facts)


def _lost(file: Path) -> list[str]:
    """The sites that a file says are lost; neither tensors nor hash are looked at."""
    with opened_tensors(file, _AGAIN, JournalError) as opened:
        metadata = opened.metadata() or {}
    with _reading(file):
        return [str(site) for site in json.loads(metadata["round"])["lost"]]


def _write(file: Path, tensors: Mapping[str, Tensor], facts: str) -> None:
    """Write tensors and facts into one file, and the file's hash beside it."""
    require_finite(tensors, file.name)  # a resumed run would fail for ever
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    with writing(file) as partial:
        save_file(contiguous, partial, metadata={"round": facts})
        with writing(file.with_suffix(".sha256")) as hashed:
            hashed.write_text(_digest(partial), encoding="utf-8")


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _reading(file: Path) -> AbstractContextManager[None]:
    return reading(f"{file} cannot be read", _AGAIN, JournalError)
