"""Core Space: merge LoRAs as small matrices between shared bases of all A and B. Tensors only."""

from collections.abc import Mapping
from typing import Literal

import torch

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, changed, low_rank
from layerweld.merging.sums import TaskArithmetic
from layerweld.merging.ties import Ties
from layerweld.merging.tsv import Tsv
from layerweld.settings_table import NonZeroShare, Positive
from layerweld.updates.spectrum import spectrum_of
from layerweld.updates.update import LowRankUpdate, Update

Inner = Literal["task-arithmetic", "ties", "tsv"]


def core_space(
    updates: Mapping[str, Update], samples: Mapping[str, int], inner: MergeMethod
) -> Update:
    """Merge one layer's ``M_i = U_Bᵀ B_i A_i V_A`` of ``Σ r_i`` rows and columns.

    ``U_B`` spans the columns of all ``B_i``, ``V_A`` the rows of all ``A_i``, so that
    ``U_B M_i V_Aᵀ`` is ``ΔW_i`` without error.

    Raises:
        ValueError: an update is dense.
    """
    factors = low_rank(updates)
    lefts = torch.cat([update.left.double() for update in factors.values()], dim=1)
    rights = torch.cat([update.right.double() for update in factors.values()])
    outputs, inputs = spectrum_of(lefts).left, spectrum_of(rights).right
    cores = {s: outputs.T @ update.float64() @ inputs.T for s, update in factors.items()}
    merged = inner.merge(SiteUpdates(samples, {"": cores})).updates[""].dense().double()
    return LowRankUpdate(outputs @ merged, inputs).float32()


class CoreSpace(MergeMethod):
    """Core Space merging (Panariello et al. 2025, arXiv:2509.17786)."""

    inner: Inner = "ties"
    """What merges the small matrices, layer by layer. ``tsv`` gives what TSV gives outside
    where all sites have one rank, since the bases are orthonormal."""
    density: NonZeroShare = 0.1
    """Share of entries kept by ``inner = "ties"``; nothing else reads it."""
    scaling: Positive = 1.0
    """λ on the merged update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """For LoRAs only: the merge is a LoRA of rank ``Σ r_i`` at most."""
        inner: dict[str, MergeMethod] = {
            "task-arithmetic": TaskArithmetic(scaling=self.scaling),
            "ties": Ties(density=self.density, scaling=self.scaling),
            "tsv": Tsv(scaling=self.scaling),
        }
        return Merge(
            {
                layer: core_space(changed(by_site), sites.samples, inner[self.inner])
                for layer, by_site in sites.layers.items()
            }
        )


METHODS = (
    Method(
        "core-space", "Core Space", "Panariello et al. 2025, arXiv:2509.17786",
        "U_B · inner(U_Bᵀ ΔW_i V_A) · V_Aᵀ, U_B and V_A bases of all B_i and all A_i", CoreSpace,
        needs=("LoRA",), tune={"scaling": (0.6, 1.5, 0.4, 0.8, 1.2)},
    ),
)  # fmt: skip
