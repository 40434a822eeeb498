"""Localize-and-Stitch without data: each site's largest entries, averaged where they overlap."""

from jaxtyping import Float
from torch import Tensor

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, entry_by_entry
from layerweld.merging.ties import trim
from layerweld.settings_table import NonZeroShare, Positive


def stitch(vectors: Float[Tensor, "sites entries"], density: float) -> Float[Tensor, " entries"]:
    """The mean, entry by entry, over the sites whose region holds the entry."""
    regions = trim(vectors, density)
    return regions.sum(dim=0) / (regions != 0).sum(dim=0).clamp(min=1)


class LocalizeAndStitch(MergeMethod):
    """Localize-and-Stitch, dataless variant (He et al. 2024, arXiv:2408.13656)."""

    density: NonZeroShare = 0.05
    """Share of a site's entries in its region, over all layers together."""
    scaling: Positive = 1.0
    """λ on the merged update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """As TIES, without the election of a sign."""
        return entry_by_entry(sites, lambda vectors: self.scaling * stitch(vectors, self.density))


METHODS = (
    Method(
        "localize-and-stitch", "Localize-and-Stitch", "He et al. 2024, arXiv:2408.13656",
        "keep the largest share of each τ_i, average where they overlap, times λ",
        LocalizeAndStitch, dense=True, tune={"density": (0.1, 0.2, 0.01), "scaling": (0.6, 1.5)},
    ),
)  # fmt: skip
