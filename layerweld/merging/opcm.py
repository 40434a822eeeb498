"""OPCM: add one site after the other, each projected away from what is there. Tensors only."""

from collections.abc import Sequence

import torch

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates
from layerweld.merging.spectral import norm, summed
from layerweld.settings_table import Share
from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update, all_low_rank


def opcm(updates: Sequence[Update], threshold: float) -> Update:
    """Start with the first update and add what the others do outside of it, in their order.

    Not scaled yet: the method gives the whole model the sites' mean norm.
    """
    merged = updates[0]
    for update in updates[1:]:
        merged = _compact(summed([merged, *_projected(update, merged, threshold)]), updates)
    return merged


def _projected(update: Update, merged: Update, threshold: float) -> list[Update]:
    """The update, and what of it is taken away.

    In the basis of the merge so far that is the block of the leading directions, which hold
    ``threshold`` of the sum of singular values, and the whole diagonal.
    """
    there = merged.spectrum()
    share = there.values.cumsum(dim=0) / there.values.sum().clamp(min=1e-300)
    block = int((share <= threshold).sum())
    core = (there.left.T @ update.float64() @ there.right.T).dense()
    removed = torch.diag(core.diagonal())
    removed[:block, :block] = core[:block, :block]
    return [update, LowRankUpdate(-there.left @ removed, there.right)]


def _compact(update: Update, updates: Sequence[Update]) -> Update:
    """The same update by its own directions: otherwise its rank would double with every site."""
    if not all_low_rank(updates):
        return DenseUpdate(update.dense())
    whole = update.spectrum()
    return LowRankUpdate(whole.left * whole.values, whole.right)


class Opcm(MergeMethod):
    """OPCM, orthogonal projection-based continual merging (Tang et al. 2025, arXiv:2501.09522).

    Sequential: the sites are added in the order of their names, and another order gives another
    merge.
    """

    threshold: Share = 0.5
    """Share of the sum of singular values whose directions are closed to later sites."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """The merged model has the mean norm of the sites' updates."""
        merged = {
            layer: opcm(list(by_site.values()), self.threshold)
            for layer, by_site in sites.layers.items()
        }
        norms = [
            norm([by_site[site] for by_site in sites.layers.values() if site in by_site])
            for site in sites.sites
        ]
        size = norm(merged.values())
        scale = sum(norms) / len(norms) / size if size > 0 else 1.0
        return Merge({layer: (update * scale).float32() for layer, update in merged.items()})


METHODS = (
    Method(
        "opcm", "OPCM", "Tang et al. 2025, arXiv:2501.09522",
        "site after site: M += ΔW_i without M's leading block and diagonal; at the end the sites' "
        "mean norm. The order of names matters",
        Opcm, tune={"threshold": (0.2, 0.8, 0.35, 0.65, 0.9)},
    ),
)  # fmt: skip
