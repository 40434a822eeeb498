"""Scaled sums of the sites' updates: the mean, and task arithmetic. Pure tensor code."""

from collections.abc import Sequence
from functools import partial

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, layer_by_layer
from layerweld.settings_table import Positive
from layerweld.updates.exact_sum import ExactSum
from layerweld.updates.update import DenseUpdate, Update, all_low_rank, stack


def scaled_sum(updates: Sequence[Update], factor: float) -> Update:
    """``factor · Σ ΔW_i``: LoRA updates stacked to rank ``Σ r_i``, dense ones summed exactly."""
    if low_rank := all_low_rank(updates):
        return stack(low_rank) * factor
    total = ExactSum(updates[0].shape)
    for update in updates:
        total.add(update.dense().double())
    return DenseUpdate((total.total() * factor).float())


def weighted_sum(updates: Sequence[Update], factors: Sequence[float]) -> Update:
    """``Σ factor_i · ΔW_i``, in the same way."""
    if low_rank := all_low_rank(updates):
        return stack([update * f for update, f in zip(low_rank, factors, strict=True)])
    total = ExactSum(updates[0].shape)
    for update, factor in zip(updates, factors, strict=True):
        total.add(update.dense().double() * factor)
    return DenseUpdate(total.total().float())


class Mean(MergeMethod):
    """``ΔW_M = Σ ΔW_i / N``: of the products ``B_i A_i``, not of the factors apart."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """A site that did not change a layer counts as zero there."""
        return layer_by_layer(sites, partial(scaled_sum, factor=1 / len(sites.sites)))


class TaskArithmetic(MergeMethod):
    """``ΔW_M = λ Σ ΔW_i`` (Ilharco et al. 2023, arXiv:2212.04089)."""

    scaling: Positive = 0.3
    """λ. It multiplies the sum: 1 / N would be the mean."""

    def other_params_scale(self, num_sites: int) -> float:
        """The sum is scaled there as well."""
        return self.scaling * num_sites

    def merge(self, sites: SiteUpdates) -> Merge:
        """The sum over the sites that changed a layer, scaled."""
        return layer_by_layer(sites, partial(scaled_sum, factor=self.scaling))


METHODS = (
    Method(
        "task-arithmetic", "Task arithmetic", "Ilharco et al. 2023, arXiv:2212.04089", "λ Σ ΔW_i",
        TaskArithmetic, sums=True, tune={"scaling": (0.2, 0.5, 0.15, 0.7, 1.0)},
    ),
    Method(
        "mean", "Mean of the updates", "McMahan et al. 2017, arXiv:1602.05629", "Σ ΔW_i / N", Mean,
        sums=True,
    ),
)  # fmt: skip
