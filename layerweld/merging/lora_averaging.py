"""How federated fine-tuning averages LoRAs, and how far each way is from the mean. Tensors only."""

from collections.abc import Sequence
from typing import Literal

import torch

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, low_rank
from layerweld.merging.spectral import relative_distance, truncated
from layerweld.settings_table import Rank
from layerweld.updates.update import LowRankUpdate, stack

Weighting = Literal["samples", "uniform"]
ERROR = "distance to the mean"
"""Figure: ``‖ΔW_M - Σ p_i ΔW_i‖ / ‖Σ p_i ΔW_i‖`` over all layers; 0 where a method is exact."""


def weighted(
    sites: SiteUpdates, weighting: Weighting
) -> dict[str, tuple[list[LowRankUpdate], list[float]]]:
    """By layer, the factors of the sites that have them and the shares of these sites.

    Raises:
        ValueError: an update is dense.
    """
    shares = sites.shares(by_samples=weighting == "samples")
    return {
        layer: (list(low_rank(by_site).values()), [shares[site] for site in by_site])
        for layer, by_site in sites.layers.items()
    }


def weighted_mean(updates: Sequence[LowRankUpdate], shares: Sequence[float]) -> LowRankUpdate:
    """``Σ p_i B_i A_i`` without error, by stacking: rank ``Σ r_i``."""
    return stack([update * share for update, share in zip(updates, shares, strict=True)])


def factors_apart(updates: Sequence[LowRankUpdate], shares: Sequence[float]) -> LowRankUpdate:
    """``(Σ p_i B_i) (Σ p_i A_i)``, each ``B_i`` with its scaling."""
    pairs = list(zip(updates, shares, strict=True))
    left = torch.stack([share * update.left for update, share in pairs]).sum(dim=0)
    right = torch.stack([share * update.right for update, share in pairs]).sum(dim=0)
    return LowRankUpdate(left, right)


class _Averaging(MergeMethod):
    """What averages LoRAs with a weight for each site."""

    weighting: Weighting = "samples"
    """Sites count by their training samples, or all alike."""


class FedIt(_Averaging):
    """FedIT: average all ``A`` and all ``B`` apart (Zhang et al. 2024, arXiv:2305.05644)."""

    averages_factors = True

    def merge(self, sites: SiteUpdates) -> Merge:
        """Inexact: the mean of products is not the product of means."""
        merged, means = {}, {}
        for layer, (updates, shares) in weighted(sites, self.weighting).items():
            merged[layer] = factors_apart(updates, shares)
            means[layer] = weighted_mean(updates, shares)
        return Merge(merged, {ERROR: relative_distance(merged.values(), means.values())})


class FfaLora(_Averaging):
    """FFA-LoRA: average ``B`` over sites that share one frozen ``A`` (Sun et al. 2024)."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """Exact, and of one site's rank: with ``A`` in common the mean is linear in ``B``.

        Raises:
            ValueError: the sites' ``A`` differ.
        """
        merged = {}
        for layer, (updates, shares) in weighted(sites, self.weighting).items():
            if any(not torch.equal(update.right, updates[0].right) for update in updates):
                raise ValueError(f"FFA-LoRA averages B behind one A; those of {layer!r} differ")
            left = weighted_mean(updates, shares).left
            blocks = left.split(updates[0].rank, dim=1)
            merged[layer] = LowRankUpdate(torch.stack(blocks).sum(dim=0), updates[0].right)
        return Merge(merged, {ERROR: 0.0})


class Flora(_Averaging):
    """FLoRA: stack the factors (Wang et al. 2024, arXiv:2409.05976)."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """Exact, whatever the sites' ranks; the merge has rank ``Σ r_i``."""
        merged = {
            layer: weighted_mean(updates, shares)
            for layer, (updates, shares) in weighted(sites, self.weighting).items()
        }
        return Merge(merged, {ERROR: 0.0})


class FedEx(MergeMethod):
    """FedEx-LoRA: average factors apart and add the residual (Singhal et al. 2025)."""

    weighting: Weighting = "uniform"
    """Sites count all alike, or by their training samples."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """Exact. As one merge it is the mean; the number says how much of it is residual.

        Between rounds of training the authors add the residual ``Σ p_i B_i A_i - B̄ Ā`` to the base
        weights and go on with ``B̄`` and ``Ā``. Here base weights stay as they are, and both come
        back as one LoRA.
        """
        merged, apart = {}, {}
        for layer, (updates, shares) in weighted(sites, self.weighting).items():
            merged[layer] = weighted_mean(updates, shares)
            apart[layer] = factors_apart(updates, shares)
        residual = relative_distance(apart.values(), merged.values())
        return Merge(merged, {ERROR: 0.0, "residual in the mean": residual})


class FlexLora(_Averaging):
    """FlexLoRA: the mean, cut to a rank by its singular values (Bai et al. 2024)."""

    rank: Rank = 0
    """Rank of the merge in every layer; 0 takes the largest rank that a site has there."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """Inexact, but no update of that rank is closer to the mean."""
        merged, means = {}, {}
        for layer, (updates, shares) in weighted(sites, self.weighting).items():
            means[layer] = weighted_mean(updates, shares)
            rank = self.rank or max(update.rank for update in updates)
            merged[layer] = truncated(means[layer], rank)
        return Merge(merged, {ERROR: relative_distance(merged.values(), means.values())})


METHODS = (
    Method(
        "fedit", "FedIT", "Zhang et al. 2024, arXiv:2305.05644",
        "(Σ p_i B_i) (Σ p_i A_i), a product of means and so not exact", FedIt, sums=True,
        needs=("LoRA", "equal ranks"),
    ),
    Method(
        "ffa-lora", "FFA-LoRA", "Sun et al. 2024, arXiv:2403.12313",
        "(Σ p_i B_i) A, exact at one site's rank", FfaLora, sums=True, needs=("LoRA", "shared A"),
    ),
    Method(
        "flora", "FLoRA", "Wang et al. 2024, arXiv:2409.05976",
        "[p_1 B_1 … p_N B_N] [A_1; …; A_N], exact at rank Σ r_i", Flora, needs=("LoRA",),
    ),
    Method(
        "fedex-lora", "FedEx-LoRA", "Singhal et al. 2025, arXiv:2410.09432",
        "B̄ Ā + (Σ p_i B_i A_i - B̄ Ā), exact at rank Σ r_i", FedEx, needs=("LoRA", "equal ranks"),
    ),
    Method(
        "flexlora", "FlexLoRA", "Bai et al. 2024, arXiv:2402.11505",
        "Σ p_i B_i A_i cut to a rank by its singular values, the closest of that rank", FlexLora,
        needs=("LoRA",),
    ),
)  # fmt: skip
