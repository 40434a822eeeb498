"""TIES-Merging: trim, elect a sign, average those who agree. Pure tensor code."""

import torch
from jaxtyping import Float
from torch import Tensor

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, entry_by_entry
from layerweld.settings_table import NonZeroShare, Positive


def trim(vectors: Float[Tensor, "sites entries"], density: float) -> Float[Tensor, "sites entries"]:
    """Keep each site's ``density · entries`` largest magnitudes, at least one; the rest is zero.

    Entries as large as the smallest kept one are kept as well.
    """
    entries = vectors.shape[1]
    count = max(1, int(density * entries))
    if count == entries:
        return vectors
    magnitudes = vectors.abs()
    smallest = magnitudes.kthvalue(entries - count + 1, dim=1, keepdim=True).values
    return vectors * (magnitudes >= smallest)


def agreeing_entries(vectors: Float[Tensor, "sites entries"]) -> Float[Tensor, "sites entries"]:
    """The entries whose sign is the sign of their sum over all sites; the rest is zero.

    Where the sum is exactly zero the sign of most other entries decides, as in the authors' code.
    """
    sign = vectors.sum(dim=0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    return vectors * (vectors.sign() == sign)


def agreeing_mean(vectors: Float[Tensor, "sites entries"]) -> Float[Tensor, " entries"]:
    """Per entry, the mean over the sites that agree; zeros are not counted."""
    agreeing = agreeing_entries(vectors)
    return agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)


def ties(vectors: Float[Tensor, "sites entries"], density: float) -> Float[Tensor, " entries"]:
    """Trim each row, elect a sign per entry, and average the entries that have it."""
    return agreeing_mean(trim(vectors, density))


class Ties(MergeMethod):
    """TIES-Merging (Yadav et al. 2023, arXiv:2306.01708)."""

    density: NonZeroShare = 0.2
    """Share of a site's entries that is kept, over all layers together."""
    scaling: Positive = 1.0
    """λ on the merged update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """The result is dense: trimming leaves no low rank."""
        return entry_by_entry(sites, lambda vectors: self.scaling * ties(vectors, self.density))


METHODS = (
    Method(
        "ties", "TIES", "Yadav et al. 2023, arXiv:2306.01708",
        "keep the largest share of each τ_i, elect sign(Σ τ_i) per entry, average the entries that "
        "have it, times λ",
        Ties, dense=True, tune={"scaling": (0.6, 1.5, 0.4), "density": (0.1, 0.5)},
    ),
)  # fmt: skip
