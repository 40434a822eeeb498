"""KnOTS: align the updates in one shared basis, and merge what they are there. Tensors only."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from layerweld.merging.dare import DareTies, DropRate
from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, in_kind
from layerweld.merging.ties import Ties
from layerweld.settings_table import NonZeroShare, Positive, Seed
from layerweld.updates.spectrum import spectrum_of
from layerweld.updates.update import DenseUpdate, Update


def shared_basis(updates: Sequence[Update]) -> Float64[Tensor, "d_out k"]:
    """Left singular vectors of ``[ΔW_1 … ΔW_N]``.

    Of LoRAs the rows of ``A_i = L_i Q_i`` are made orthonormal first; then ``[B_1 L_1 … B_N L_N]``,
    which has ``Σ r_i`` columns, has the same left singular vectors.
    """
    return spectrum_of(torch.cat([update.column_factor() for update in updates], dim=1)).left


def in_basis(update: Update, basis: Float64[Tensor, "d_out k"]) -> DenseUpdate:
    """``Uᵀ ΔW``, ``(k, d_in)``: what the authors call ``diag(s) V_i``."""
    return DenseUpdate((basis.T @ update.float64()).dense())


def knots(sites: SiteUpdates, method: MergeMethod) -> Merge:
    """Merge with a method that knows entries only, in each layer's shared basis."""
    bases = {layer: shared_basis(list(by_site.values())) for layer, by_site in sites.layers.items()}
    aligned = {
        layer: {site: in_basis(update, bases[layer]) for site, update in by_site.items()}
        for layer, by_site in sites.layers.items()
    }
    merged = method.merge(SiteUpdates(sites.samples, aligned)).updates
    return Merge(
        {
            layer: in_kind(list(by_site.values()), bases[layer], merged[layer].dense().double())
            for layer, by_site in sites.layers.items()
        }
    )


class KnotsTies(MergeMethod):
    """KnOTS-TIES (Stoica et al. 2025, arXiv:2410.19735)."""

    density: NonZeroShare = 0.2
    """Share of a site's entries in the shared bases that is kept, over all layers together."""
    scaling: Positive = 0.6
    """λ on the merged update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """The merge of LoRAs is a LoRA of rank ``Σ r_i`` at most."""
        return knots(sites, Ties(density=self.density, scaling=self.scaling))


class KnotsDareTies(MergeMethod):
    """KnOTS-DARE-TIES (Stoica et al. 2025)."""

    drop: DropRate = 0.1
    """Probability that an entry in the shared bases is dropped."""
    scaling: Positive = 0.7
    """λ on the merged update."""
    seed: Seed = 0
    """Seed of the random choice."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """As the authors run it: dropping takes the place of trimming."""
        return knots(sites, DareTies(drop=self.drop, scaling=self.scaling, seed=self.seed))


METHODS = (
    Method(
        "knots-ties", "KnOTS-TIES", "Stoica et al. 2025, arXiv:2410.19735",
        "U · ties(Uᵀ ΔW_i), U the left singular vectors of [ΔW_1 … ΔW_N]", KnotsTies,
        tune={"scaling": (0.4, 1.0, 1.5), "density": (0.1, 0.5)},
    ),
    Method(
        "knots-dare-ties", "KnOTS-DARE-TIES", "Stoica et al. 2025, arXiv:2410.19735",
        "U · dare-ties(Uᵀ ΔW_i)", KnotsDareTies,
        tune={"scaling": (0.4, 1.0, 1.5), "drop": (0.5, 0.9)},
    ),
)  # fmt: skip
