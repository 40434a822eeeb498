"""Rounds on disk, of methods that play many: what a killed server goes on from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from layerweld.errors import JournalError
from layerweld.progress import report_progress
from server.hashed_files import read_hashed, write_hashed
from strategies.round_by_round import KeptRound, Traffic


class RoundFiles:
    """The kept rounds of one method, one checked file each.

    Args:
        folder: of the rounds; created with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> Sequence[KeptRound]:
        """Every kept round in order.

        A last file that does not match its hash was being written when the power went: it is left
        out, and that round is played again.

        Raises:
            JournalError: an earlier file is damaged or missing.
        """
        files = sorted(self._folder.glob("round-*.safetensors"))
        rounds: list[KeptRound] = []
        for file in files:
            try:
                rounds.append(_read(file))
            except JournalError as error:
                if file != files[-1]:
                    raise
                report_progress(f"{error}: that round is played again", 0, 0)
        for index, kept in enumerate(rounds):
            if kept.index != index:
                raise JournalError(
                    f"{self._folder} lacks round {index}; remove the later files to go on from it"
                )
        return rounds

    def keep(self, round_: KeptRound) -> None:
        """Write one round: it is whole or not there.

        Raises:
            StorageError: it cannot be written; the rounds before it are untouched.
        """
        about = {
            "index": round_.index,
            "figures": dict(round_.figures),
            "up": round_.traffic.up,
            "down": round_.traffic.down,
            "lost": round_.lost,
        }
        file = self._folder / f"round-{round_.index:05d}.safetensors"
        write_hashed(file, round_.tensors, {"about": json.dumps(about, sort_keys=True)})


def _read(file: Path) -> KeptRound:
    tensors, metadata = read_hashed(file)
    try:
        about = json.loads(metadata["about"])
        traffic = Traffic(about["up"], about["down"])
        lost = tuple(about["lost"])
        return KeptRound(about["index"], tensors, about["figures"], traffic, lost)
    except (ValueError, TypeError, KeyError) as error:
        raise JournalError(
            f"{file} cannot be read ({error}); remove it to play that round again"
        ) from None
