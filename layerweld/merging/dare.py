"""DARE: drop entries at random and rescale the rest. Pure tensor code."""

import hashlib
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, entry_by_entry
from layerweld.merging.ties import agreeing_mean
from layerweld.settings_table import Positive, Seed

DropRate = Annotated[float, Field(ge=0, lt=1)]


def dropped(
    vectors: Float[Tensor, "sites entries"], rate: float, seeds: Sequence[int]
) -> Float[Tensor, "sites entries"]:
    """Set each entry to zero with probability ``rate`` and divide the others by ``1 - rate``.

    Args:
        vectors: one row per site.
        rate: probability of dropping; 0 leaves everything as it is.
        seeds: one per site.
    """
    masks = [
        torch.rand(vectors.shape[1], generator=torch.Generator().manual_seed(seed)) >= rate
        for seed in seeds
    ]
    return vectors * torch.stack(masks) / (1 - rate)


def seeds_of(sites: SiteUpdates, seed: int) -> list[int]:
    """A seed of its own for each site, which does not change when other sites come or go."""
    digests = (hashlib.sha256(f"{seed} {site}".encode()).digest() for site in sites.sites)
    return [int.from_bytes(digest[:8], "big") >> 1 for digest in digests]


class Dare(MergeMethod):
    """DARE before task arithmetic (Yu et al. 2024, arXiv:2311.03099)."""

    drop: DropRate = 0.9
    """Probability that an entry is dropped."""
    scaling: Positive = 0.3
    """λ of task arithmetic."""
    seed: Seed = 0
    """Seed of the random choice."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """In expectation this is task arithmetic."""
        seeds = seeds_of(sites, self.seed)
        return entry_by_entry(
            sites, lambda vectors: self.scaling * dropped(vectors, self.drop, seeds).sum(dim=0)
        )


class DareTies(MergeMethod):
    """DARE instead of the trimming in TIES (Yu et al. 2024), as PEFT and mergekit have it."""

    drop: DropRate = 0.9
    """Probability that an entry is dropped."""
    scaling: Positive = 1.0
    """λ on the merged update."""
    seed: Seed = 0
    """Seed of the random choice."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """Drop, then elect signs and average those who agree."""
        seeds = seeds_of(sites, self.seed)
        return entry_by_entry(
            sites, lambda vectors: self.scaling * agreeing_mean(dropped(vectors, self.drop, seeds))
        )


METHODS = (
    Method(
        "dare", "DARE", "Yu et al. 2024, arXiv:2311.03099",
        "drop entries of τ_i with probability p, divide the rest by 1 - p, then λ Σ", Dare,
        dense=True, tune={"scaling": (0.2, 0.5, 0.15), "drop": (0.5, 0.2)},
    ),
    Method(
        "dare-ties", "DARE-TIES", "Yu et al. 2024, arXiv:2311.03099",
        "drop as in `dare`, then elect and average as in `ties`", DareTies, dense=True,
        tune={"scaling": (0.6, 1.5, 0.4), "drop": (0.5, 0.2)},
    ),
)  # fmt: skip
