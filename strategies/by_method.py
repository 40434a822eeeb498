"""Which rounds every kind of method is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from layerweld.merging.fisher import Fisher
from layerweld.merging.method import CHAIN, DISTILLATION, ENTROPY, FISHER, Method
from layerweld.plan import MergePlan
from layerweld.settings.run import RunSettings
from strategies.adaptive_merging import AdaptiveMerging
from strategies.chain_of_merges import ChainRounds
from strategies.cohort import Cohort
from strategies.fisher_averaging import FisherAveraging
from strategies.progressive_distillation import ProgressiveDistillation
from strategies.rounds import Rounds
from strategies.update_merging import UpdateMerging


def rounds_of(
    method: Method,
    plan: MergePlan,
    cohort: Cohort,
    settings: RunSettings,
    other_params: Mapping[str, Tensor],
) -> Rounds:
    """A method's rounds, the first of them next.

    Args:
        method: which.
        plan: the layers that are merged.
        cohort: the sites.
        settings: of the run.
        other_params: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
    """
    rank = settings.merge.rank
    if method.kind is CHAIN:
        return ChainRounds(method.name, plan, cohort, settings, other_params)
    if method.kind is FISHER:
        return FisherAveraging(plan, cohort, other_params, settings.table(Fisher), rank)
    if method.kind is ENTROPY:
        return AdaptiveMerging(method.name, plan, cohort, settings, other_params)
    if method.kind is DISTILLATION:
        return ProgressiveDistillation(plan, cohort, settings, other_params)
    kernel, lines = settings.of_method(method.table), settings.lines if method.lines else None
    return UpdateMerging(plan, cohort, kernel, other_params, lines, rank)
