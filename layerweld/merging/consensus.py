"""Consensus task arithmetic: keep the entries that several sites' masks select. Tensors only."""

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, entry_by_entry
from layerweld.settings_table import NonNegative, Positive


def consensus(
    vectors: Float[Tensor, "sites entries"], mask_scale: float, agreement: int
) -> Float[Tensor, " entries"]:
    """``Σ τ_i`` where ``agreement`` or more masks ``|τ_i| ≥ λ |Σ τ - τ_i|`` are set, else 0."""
    total = vectors.sum(dim=0)
    masks = vectors.abs() >= mask_scale * (total - vectors).abs()
    return total * (masks.sum(dim=0) >= agreement)


class Consensus(MergeMethod):
    """Consensus task arithmetic with TALL masks (Wang et al. 2024, arXiv:2405.07813)."""

    mask_scale: NonNegative = 0.4
    """λ of the masks: larger ones select fewer entries. The authors search 0.2 to 0.6."""
    agreement: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Sites that must have selected an entry."""
    scaling: Positive = 0.3
    """λ of task arithmetic on what is kept."""

    @property
    def fewest_sites(self) -> int:
        """Fewer sites than must agree would leave nothing."""
        return self.agreement

    def merge(self, sites: SiteUpdates) -> Merge:
        """Task arithmetic without catastrophic and without selfish weights."""
        return entry_by_entry(
            sites,
            lambda vectors: self.scaling * consensus(vectors, self.mask_scale, self.agreement),
        )


METHODS = (
    Method(
        "consensus", "Consensus TA", "Wang et al. 2024, arXiv:2405.07813",
        "λ Σ τ_i where |τ_i| ≥ mask-scale |Σ τ - τ_i| for `agreement` sites or more, else 0",
        Consensus, dense=True, tune={"scaling": (0.2, 0.5, 0.7), "mask-scale": (0.2, 0.6)},
    ),
)  # fmt: skip
