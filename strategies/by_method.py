"""Which rounds every kind of method is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from layerweld.merging.method import CHAIN, DISTILLATION, ENTROPY, FISHER, UPDATES, Kind, Method
from layerweld.plan import MergePlan
from layerweld.settings.run import RunSettings
from strategies.adaptive_merging import AdaptiveMerging
from strategies.chain_of_merges import ChainRounds
from strategies.cohort import Cohort
from strategies.fisher_averaging import FisherAveraging
from strategies.progressive_distillation import ProgressiveDistillation
from strategies.rounds import MethodRounds
from strategies.update_merging import UpdateMerging

_ROUNDS: Mapping[Kind, type[MethodRounds]] = {
    CHAIN: ChainRounds,
    UPDATES: UpdateMerging,
    FISHER: FisherAveraging,
    ENTROPY: AdaptiveMerging,
    DISTILLATION: ProgressiveDistillation,
}


def rounds_of(
    method: Method,
    plan: MergePlan,
    cohort: Cohort,
    settings: RunSettings,
    other_params: Mapping[str, Tensor],
) -> MethodRounds:
    """A method's rounds; see :class:`strategies.rounds.MethodRounds`."""
    return _ROUNDS[method.kind](method, plan, cohort, settings, other_params)
