"""Finished rounds on disk, one checked file each: what a killed server goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from layerweld.errors import JournalError
from layerweld.untrusted.files import reading
from server.hashed_files import read_hashed, read_metadata, write_hashed
from strategies.notices import notice
from strategies.rounds import Kept, KeptRound


class RoundFiles:
    """The rounds of one method in one folder.

    Args:
        folder: created with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> Sequence[KeptRound]:
        """All that were kept, in order.

        A last file that does not match its hash was being written when the power went: it is left
        out, and the round is run again.

        Raises:
            JournalError: an earlier file is damaged or missing.
        """
        rounds = _whole(self._files)
        for place, kept in enumerate(rounds):
            if kept.index != place:
                raise JournalError(
                    f"{self._folder} lacks round {place}; remove the later files to go on from it"
                )
        return rounds

    def lost(self) -> set[str]:
        """Names of the sites that any of the rounds lacks.

        Only the last file, which may be left out, is read as a whole and compared with its hash.
        Those before it are once they are loaded.

        Raises:
            JournalError: what an earlier file says of itself cannot be read.
        """
        files = self._files
        last = {site for kept in _whole(files[-1:]) for site in kept.lost}
        return last.union(*map(_lost, files[:-1]))

    def keep(self, round_: KeptRound) -> None:
        """Write one: it is whole or not there.

        Raises:
            StorageError: it cannot be written; those before it are untouched.
            UnusableMergeError: it holds a number that is not finite.
        """
        facts = {key: value for key, value in vars(round_).items() if key != "kept"}
        text = json.dumps(facts | {"metrics": round_.kept.metrics}, sort_keys=True, allow_nan=False)
        file = self._folder / f"round-{round_.index:05d}.safetensors"
        write_hashed(file, round_.kept.tensors, {"round": text})

    @property
    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.safetensors"))


def _whole(files: Sequence[Path]) -> list[KeptRound]:
    """What they hold; without the last one where that is damaged."""
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
    tensors, metadata = read_hashed(file)
    with _decoding(file):
        facts = json.loads(metadata["round"])
        kept = Kept(tensors, facts.pop("metrics"))
        return KeptRound(kept=kept, lost=tuple(facts.pop("lost")), **facts)


def _lost(file: Path) -> list[str]:
    metadata = read_metadata(file)
    with _decoding(file):
        return [str(site) for site in json.loads(metadata["round"])["lost"]]


@contextmanager
def _decoding(file: Path) -> Iterator[None]:
    with reading(f"{file} cannot be read", "remove it to run that round again", JournalError):
        yield
