"""WUDI in closed form: RegMean with ``ΔWᵀ ΔW`` instead of a Gram matrix. Tensors only."""

from collections.abc import Sequence

import torch

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, in_kind, layer_by_layer
from layerweld.settings_table import Positive
from layerweld.updates.spectrum import spectrum_of
from layerweld.updates.update import Update


def wudi(updates: Sequence[Update], ridge: float) -> Update:
    """The minimiser of ``Σ_i ‖(ΔW_M - ΔW_i) ΔW_iᵀ‖² / ‖ΔW_i‖² + λ ‖ΔW_M‖²``.

    It is ``(Σ ΔW_i G_i) (Σ G_i + λ I)⁻¹`` with ``G_i = ΔW_iᵀ ΔW_i / ‖ΔW_i‖²`` and
    ``λ = ridge · tr(Σ G_i) / d_in``. Everything happens in the span of the updates' rows, which for
    LoRAs has ``Σ r_i`` dimensions.
    """
    basis = spectrum_of(torch.cat([update.row_basis() for update in updates])).right
    inside = [there for u in updates if (there := (u.float64() @ basis.T).dense()).any()]
    if not inside:  # every update is zero, whatever its factors
        return updates[0]
    grams = torch.stack([there.T @ there / there.square().sum() for there in inside])
    products = (torch.stack(inside) @ grams).sum(dim=0)
    system = grams.sum(dim=0)
    system += ridge * len(inside) / updates[0].shape[1] * torch.eye(len(system)).double()
    return in_kind(updates, torch.linalg.solve(system, products.T).T, basis)


class Wudi(MergeMethod):
    """WUDI-Merging (Cheng et al. 2025, arXiv:2503.08099), solved instead of descended."""

    ridge: Positive = 0.01
    """λ as a fraction of the mean of diag(Σ G_i)."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """The authors descend for 300 steps from the sum; this is where the descent would end."""
        return layer_by_layer(sites, lambda updates: wudi(updates, self.ridge))


METHODS = (
    Method(
        "wudi", "WUDI, closed form", "Cheng et al. 2025, arXiv:2503.08099",
        "(Σ ΔW_i G_i) (Σ G_i + λ I)⁻¹ with G_i = ΔW_iᵀ ΔW_i / ‖ΔW_i‖²", Wudi,
        tune={"ridge": (0.1, 0.001, 0.03, 0.003, 0.0003)},
    ),
)  # fmt: skip
