"""Which rounds play which kind of method: a plain table. The chain is not in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from layerweld.merging.fisher import Fisher
from layerweld.merging.method import DISTILLATION, ENTROPY, FISHER, UPDATES, Kind, Method
from layerweld.plan import MergePlan
from layerweld.settings.run import RunSettings
from strategies.adaptive_merging import AdaptiveMerging
from strategies.cohort import Cohort
from strategies.fisher_averaging import FisherAveraging
from strategies.kept_rounds import RoundJournal
from strategies.progressive_distillation import ProgressiveDistillation
from strategies.round_by_round import Rounds
from strategies.update_merging import UpdateMerging


@dataclass(frozen=True)
class Play:
    """What every method's rounds are made from.

    Attributes:
        method: which.
        plan: the layers that are merged.
        cohort: the sites.
        settings: of the run.
        remainder: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
        journal: where a method of many rounds keeps how far it is.
    """

    method: Method
    plan: MergePlan
    cohort: Cohort
    settings: RunSettings
    remainder: Mapping[str, Tensor]
    journal: RoundJournal


def rounds_of(play: Play) -> Rounds:
    """The rounds of a method that is no chain."""
    return _ROUNDS[play.method.kind](play)


def _of_updates(play: Play) -> Rounds:
    return UpdateMerging(
        play.plan,
        play.cohort,
        play.settings.of_method(play.method.table),
        play.remainder,
        play.settings.lines if play.method.lines else None,
    )


def _fisher(play: Play) -> Rounds:
    return FisherAveraging(play.plan, play.cohort, play.remainder, play.settings.table(Fisher))


def _adamerging(play: Play) -> Rounds:
    return AdaptiveMerging(
        play.method.name, play.plan, play.cohort, play.settings, play.remainder, play.journal
    )


def _prodistill(play: Play) -> Rounds:
    return ProgressiveDistillation(
        play.plan, play.cohort, play.settings, play.remainder, play.journal
    )


_ROUNDS: Mapping[Kind, Callable[[Play], Rounds]] = {
    UPDATES: _of_updates,
    FISHER: _fisher,
    ENTROPY: _adamerging,
    DISTILLATION: _prodistill,
}
