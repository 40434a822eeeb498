"""DC-Merge: even spectra, merged entry by entry between shared orthogonal bases. Tensors only."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, in_kind, layer_by_layer
from layerweld.merging.spectral import Spectrum
from layerweld.merging.ties import ties
from layerweld.merging.tsv import decorrelated, leading_parts
from layerweld.settings_table import NonZeroShare, Positive
from layerweld.updates.update import Update

Smoothing = Literal["mean", "linear"]


def smoothed(values: Float64[Tensor, " k"], smoothing: Smoothing, ratio: float) -> Tensor:
    """Other singular values of the same sum: all alike, or falling evenly.

    Args:
        values: largest first.
        smoothing: ``mean`` makes them alike; ``linear`` lets them fall along a line.
        ratio: of the largest to the smallest on that line, if it was not smaller before.
    """
    if smoothing == "mean":
        return values.mean().expand(len(values))
    ramp = torch.linspace(min(ratio, float(values[0] / values[-1])), 1.0, len(values))
    return values.sum() * ramp.double() / ramp.double().sum()


def dc_merge(
    updates: Sequence[Update], density: float, smoothing: Smoothing, ratio: float, scaling: float
) -> Update:
    """Each site keeps its strongest entries in the joint basis, in its own diagonal block."""
    parts = leading_parts(updates)
    joint = decorrelated(parts)
    cores = [_core(part, joint, smoothed(part.values, smoothing, ratio)) for part in parts]
    rows, columns = joint.left.shape[1], joint.right.shape[0]
    merged = ties(torch.stack([core.flatten() for core in cores]), density).reshape(rows, columns)
    blocks = torch.block_diag(*[torch.ones(len(p.values), len(p.values)) for p in parts])
    return in_kind(updates, scaling * joint.left @ (merged * blocks), joint.right)


def _core(part: Spectrum, joint: Spectrum, values: Tensor) -> Tensor:
    """``Uᵀ (U_i diag(values) V_iᵀ) V``."""
    return ((joint.left.T @ part.left) * values) @ (part.right @ joint.right.T)


class DcMerge(MergeMethod):
    """DC-Merge, directional consistency (CVPR 2026; after the authors' code for LoRA)."""

    density: NonZeroShare = 0.001
    """Share of a site's entries in the joint basis that is kept, in each layer; at least one."""
    smoothing: Smoothing = "mean"
    """Make a site's singular values alike, or let them fall evenly."""
    ratio: Annotated[float, Field(ge=1, le=1e6)] = 5.0
    """Largest to smallest value of ``smoothing = "linear"``; nothing else reads it."""
    scaling: Positive = 1.0
    """λ on the merged update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """From the factors where there are factors; the merge of LoRAs is a LoRA."""
        return layer_by_layer(
            sites,
            lambda updates: dc_merge(
                updates, self.density, self.smoothing, self.ratio, self.scaling
            ),
        )


METHODS = (
    Method(
        "dc-merge",
        "DC-Merge",
        "CVPR 2026, github.com/Tobeginwith/DC-Merge",
        "even out each site's singular values, bases as in `tsv`, ties of U_⊥ᵀ ΔW_i V_⊥, own "
        "diagonal blocks only",
        DcMerge,
        tune={"scaling": (0.6, 1.5, 0.4), "density": (0.01, 0.1)},
    ),
)
