"""What a method of many rounds keeps of each, so that a killed server can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from strategies.cohort import Cohort


@dataclass
class Traffic:
    """Bytes of arrays that sites have sent and were sent."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True)
class KeptRound:
    """What a method of many rounds goes on from.

    Attributes:
        index: of the round, from 0.
        tensors: by a name of the method's own.
        figures: what else the method must know, by name.
        traffic: up to and with this round.
        lost: sites that were in the run and are not in this round.
    """

    index: int
    tensors: Mapping[str, Tensor]
    figures: Mapping[str, float]
    traffic: Traffic
    lost: tuple[str, ...]


class RoundJournal(Protocol):
    """Where rounds are kept, so that a killed server can go on."""

    def load(self) -> Sequence[KeptRound]:
        """Every round that was kept, in order."""

    def keep(self, round_: KeptRound) -> None:
        """Make one round durable before the next one is asked."""


class RoundLedger:
    """Bytes and figures of a method, written down with its tensors after a round.

    Args:
        journal: where they are kept.
        cohort: the sites.

    Attributes:
        traffic: so far.
        figures: what came out of the rounds so far, by name.
    """

    def __init__(self, journal: RoundJournal, cohort: Cohort) -> None:
        self.traffic = Traffic()
        self.figures: dict[str, float] = {}
        self._journal = journal
        self._cohort = cohort

    def keep(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Make a round durable, with the sites that are lost by now."""
        lost = tuple(sorted(self._cohort.lost))
        kept = KeptRound(index, tensors, dict(self.figures), replace(self.traffic), lost)
        self._journal.keep(kept)

    def restore(self, kept: KeptRound) -> None:
        """Go back to how things stood after a round of an interrupted run."""
        self.figures = dict(kept.figures)
        self.traffic = replace(kept.traffic)
        for site in sorted(set(kept.lost) - self._cohort.lost.keys()):
            self._cohort.lose(site, "lost before the run was interrupted")
