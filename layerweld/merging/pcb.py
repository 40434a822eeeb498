"""PCB-Merging: weigh every entry by its size within a site and its accord with the others."""

import torch
from jaxtyping import Float
from torch import Tensor

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, entry_by_entry
from layerweld.settings_table import NonZeroShare, Positive

_OUTLIERS = 1e-4  # share of each site's entries that is clipped at either end


def pcb(vectors: Float[Tensor, "sites entries"], density: float) -> Float[Tensor, " entries"]:
    """Mean of the entries, weighted by ``exp(N · |τ|²) · tanh(τ ⊙ Σ τ)`` on a scale from 0 to 1.

    ``|τ|`` is scaled to 0 … 1 within each site first. Each site's ``density`` best scores are
    scaled to 0 … 1; all others weigh nothing. So ``exp(N · |τ|² - N)`` will do, which stays finite
    for any number of sites.
    """
    entries = vectors.shape[1]
    sizes = _clipped(vectors.abs(), int(entries * _OUTLIERS), int(entries * (1 - _OUTLIERS) - 1))
    within = (len(vectors) * (_to_unit(sizes).square() - 1)).exp()
    among = (vectors * vectors.sum(dim=0)).tanh()
    scores = within * among
    weights = _to_unit(_clipped(scores, int(entries * (1 - density)), entries - 1))
    total = weights.sum(dim=0)
    return (vectors.sign() * sizes * weights).sum(dim=0) / total.clamp(min=1e-12)


def _clipped(values: Tensor, low: int, high: int) -> Tensor:
    """Each row between its order statistics of these ranks, counted from 0."""
    low, high = min(low, values.shape[1] - 1), max(high, 0)
    least = values.kthvalue(low + 1, dim=1, keepdim=True).values
    most = values.kthvalue(high + 1, dim=1, keepdim=True).values
    return torch.clamp(values, least, most)


def _to_unit(values: Tensor) -> Tensor:
    """Each row from 0 to 1; a constant row is 0."""
    least, most = values.aminmax(dim=1, keepdim=True)
    return (values - least) / (most - least).clamp(min=torch.finfo(values.dtype).tiny)


class Pcb(MergeMethod):
    """PCB-Merging, parameter competition balancing (Du et al. 2024, arXiv:2410.02396)."""

    density: NonZeroShare = 0.05
    """Share of a site's entries that have a weight, over all layers together."""
    scaling: Positive = 1.2
    """λ on the merged update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """Without the authors' search for one λ per site, which needs validation data."""
        return entry_by_entry(sites, lambda vectors: self.scaling * pcb(vectors, self.density))


METHODS = (
    Method(
        "pcb", "PCB-Merging", "Du et al. 2024, arXiv:2410.02396",
        "λ Σ w_i ⊙ τ_i / Σ w_i, w_i the best share of exp(N |τ_i|²) tanh(τ_i ⊙ Σ τ) scaled to "
        "0 … 1",
        Pcb, dense=True, tune={"density": (0.1, 0.2), "scaling": (0.8, 1.6, 2.0)},
    ),
)  # fmt: skip
