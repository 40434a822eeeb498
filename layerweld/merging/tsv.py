"""TSV-Merge: each site's leading singular vectors, made orthogonal to each other. Tensors only."""

from collections.abc import Sequence

import torch

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, in_kind, layer_by_layer
from layerweld.settings_table import Positive
from layerweld.updates.spectrum import Spectrum, polar
from layerweld.updates.update import Update


def leading_parts(updates: Sequence[Update]) -> list[Spectrum]:
    """Of each update an equal share of the layer's directions, ``min(d_out, d_in) / N``.

    A LoRA usually has fewer directions than its share, and keeps them all.
    """
    share = max(1, min(updates[0].shape) // len(updates))
    return [update.spectrum().leading(share) for update in updates]


def decorrelated(parts: Sequence[Spectrum]) -> Spectrum:
    """All parts side by side, their vectors replaced by the closest orthonormal ones."""
    return Spectrum(
        polar(torch.cat([part.left for part in parts], dim=1)),
        torch.cat([part.values for part in parts]),
        polar(torch.cat([part.right for part in parts])),
    )


def tsv(updates: Sequence[Update], scaling: float) -> Update:
    """``λ U_⊥ diag(s) V_⊥ᵀ`` of one layer."""
    joint = decorrelated(leading_parts(updates))
    return in_kind(updates, scaling * joint.left * joint.values, joint.right)


class Tsv(MergeMethod):
    """TSV-Merge, task singular vectors (Gargiulo et al. 2025, arXiv:2412.00081)."""

    scaling: Positive = 1.0
    """λ on the merged update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """From the factors where there are factors; the merge of LoRAs is a LoRA."""
        return layer_by_layer(sites, lambda updates: tsv(updates, self.scaling))


METHODS = (
    Method(
        "tsv", "TSV-Merge", "Gargiulo et al. 2025, arXiv:2412.00081",
        "λ U_⊥ S V_⊥ᵀ: leading min(d_out, d_in) / N directions of each ΔW_i side by side, U and V "
        "replaced by their polar factors",
        Tsv, tune={"scaling": (0.6, 1.5, 0.4, 0.8, 1.2)},
    ),
)  # fmt: skip
