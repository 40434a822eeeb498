"""DC-Merge: even spectra, merged entry by entry between shared orthogonal bases. Tensors only."""

from collections.abc import Sequence

import torch
from torch import Tensor

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, in_kind, layer_by_layer
from layerweld.merging.ties import ties
from layerweld.merging.tsv import decorrelated, leading_parts
from layerweld.settings_table import NonZeroShare, Positive
from layerweld.updates.spectrum import Spectrum
from layerweld.updates.update import Update


def dc_merge(updates: Sequence[Update], density: float, scaling: float) -> Update:
    """Each site keeps its strongest entries in the joint basis, in its own diagonal block.

    A site's singular values are made alike first, with the same sum.
    """
    parts = leading_parts(updates)
    joint = decorrelated(parts)
    cores = [_even_core(part, joint) for part in parts]
    rows, columns = joint.left.shape[1], joint.right.shape[0]
    merged = ties(torch.stack([core.flatten() for core in cores]), density).reshape(rows, columns)
    blocks = torch.block_diag(*[torch.ones(len(p.values), len(p.values)) for p in parts])
    return in_kind(updates, scaling * joint.left @ (merged * blocks), joint.right)


def _even_core(part: Spectrum, joint: Spectrum) -> Tensor:
    """``s̄_i Uᵀ (U_i V_iᵀ) V``, with ``s̄_i`` the mean of the site's singular values."""
    return ((joint.left.T @ part.left) * part.values.mean()) @ (part.right @ joint.right.T)


class DcMerge(MergeMethod):
    """DC-Merge, directional consistency (CVPR 2026; after the authors' code for LoRA)."""

    density: NonZeroShare = 0.001
    """Share of a site's entries in the joint basis that is kept, in each layer; at least one."""
    scaling: Positive = 1.0
    """λ on the merged update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """From the factors where there are factors; the merge of LoRAs is a LoRA."""
        return layer_by_layer(sites, lambda updates: dc_merge(updates, self.density, self.scaling))


METHODS = (
    Method(
        "dc-merge", "DC-Merge", "CVPR 2026, github.com/Tobeginwith/DC-Merge",
        "even out each site's singular values, bases as in `tsv`, ties of U_⊥ᵀ ΔW_i V_⊥, own "
        "diagonal blocks only",
        DcMerge, tune={"scaling": (0.6, 1.5, 0.4), "density": (0.01, 0.1)},
    ),
)  # fmt: skip
