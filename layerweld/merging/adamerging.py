"""AdaMerging: one coefficient per site and layer, learnt from unlabelled samples. Tensors only."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from layerweld.merging.descent import Descent
from layerweld.merging.method import ENTROPY, Method
from layerweld.merging.one_round import Merge, SiteUpdates, site_by_site
from layerweld.merging.sums import weighted_sum
from layerweld.merging.ties import agreeing_entries, trim
from layerweld.settings_table import NonZeroShare, Rate, Seed, Settings, Share, Steps


class AdaMerging(Settings):
    """AdaMerging by layer, and AdaMerging++ (Yang et al. 2024, arXiv:2310.02575)."""

    rounds: Steps = 500
    """Steps of Adam, each a round; the authors' code takes 500. 0 is task arithmetic."""
    learning_rate: Rate = 1e-3
    """Of Adam: about the most that a coefficient moves in a round."""
    start: Share = 0.3
    """Every coefficient before the first round."""
    samples: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Samples of each site in a round; the authors draw two batches of 16."""
    density: NonZeroShare = 0.2
    """Share of a site's entries that AdaMerging++ keeps; AdaMerging does not read it."""
    seed: Seed = 0
    """Seed of the draw of samples, together with the round's number."""


class LayerCoefficients:
    """One coefficient per site (row) and layer (column), between 0 and 1, in float64.

    As in the authors' code the optimiser's own numbers may leave that range; what is used is cut
    to it, and a coefficient outside gets no gradient.

    Args:
        shape: sites and layers.
        settings: where to start, and how fast to go.
    """

    def __init__(self, shape: tuple[int, int], settings: AdaMerging) -> None:
        start = torch.full(shape, settings.start, dtype=torch.float64)
        self.descent = Descent([start], settings.learning_rate)

    @property
    def values(self) -> Float64[Tensor, "sites layers"]:
        """The coefficients to merge with."""
        return self.descent.values[0].clamp(0, 1)

    def step(self, gradient: Float64[Tensor, "sites layers"]) -> None:
        """One round: go down the sum of the sites' gradients by :attr:`values`."""
        free = self.descent.values[0]
        self.descent.step([gradient * ((free >= 0) & (free <= 1))])


def weighed(method: Method, sites: SiteUpdates, settings: AdaMerging) -> SiteUpdates:
    """What the coefficients multiply.

    The updates themselves, or for AdaMerging++ of each site's largest entries those that have the
    elected sign; these are dense.
    """
    if not method.dense:
        return sites
    return site_by_site(sites, lambda vectors: agreeing_entries(trim(vectors, settings.density)))


def merge_by_layer(
    sites: SiteUpdates, coefficients: Float64[Tensor, "sites layers"], layers: Sequence[str]
) -> Merge:
    """``ΔW_M = Σ λ_i ΔW_i`` of each layer; LoRA updates stay factored.

    Args:
        sites: what is weighed.
        coefficients: rows in the order of the sites' names.
        layers: names of the columns.
    """
    row_of = {site: row for row, site in enumerate(sites.sites)}
    column_of = {layer: column for column, layer in enumerate(layers)}
    return Merge(
        {
            layer: weighted_sum(
                list(by_site.values()),
                [float(coefficients[row_of[site], column_of[layer]]) for site in by_site],
            )
            for layer, by_site in sites.layers.items()
        }
    )


def mean_entropy(logits: Float[Tensor, "samples classes"]) -> Float[Tensor, ""]:
    """Mean over samples of ``-Σ p log p``, in nats: 0 if the head is sure of every sample."""
    logs = logits.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()


_ADAMERGING = Method(
    "adamerging", "AdaMerging", "Yang et al. 2024, arXiv:2310.02575",
    "Σ λ_i,l ΔW_i, one λ per site and layer, learnt by Adam on the mean entropy of every site's "
    "own head",
    AdaMerging, kind=ENTROPY, needs=("head",), tune={"start": (0.2, 0.5), "learning-rate": (0.01,)},
)  # fmt: skip
METHODS = (
    _ADAMERGING,
    replace(
        _ADAMERGING, name="adamerging++", label="AdaMerging++",
        formula="the same, of what `ties` keeps of each ΔW_i: its largest share, and of that the "
        "elected sign",
        dense=True,
    ),
)  # fmt: skip
