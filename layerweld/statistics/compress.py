"""Compress a factored update to a lower rank, in the metric of S. Pure tensor code."""

import torch
from jaxtyping import Float64
from torch import Tensor

from layerweld.updates.update import LowRankUpdate


def compress(
    update: LowRankUpdate, gram: Float64[Tensor, "d_in d_in"], rank: int
) -> tuple[LowRankUpdate, float]:
    """The update of this rank that is closest in what the layer puts out.

    Minimises ``‖(ΔW - ΔW_rank) S^½‖_F``, the error on the outputs over the calibration tokens,
    not the error on the weights (reduced-rank regression, Izenman 1975): project onto the leading
    left singular vectors of ``ΔW S^½``, which are eigenvectors of ``ΔW S ΔWᵀ``. Only matrices of
    the factors' size are decomposed.

    Args:
        update: ``ΔW``, float64.
        gram: the metric ``S``, symmetric positive semi-definite.
        rank: columns to keep; a larger one than there are changes nothing.

    Returns:
        The update, and the relative error in the metric of ``S``: 0 for none, 1 when all is lost.
    """
    left, right = update.left, update.right
    if rank >= update.rank:
        return update, 0.0
    basis, triangle = torch.linalg.qr(left)
    core = triangle @ (right @ gram @ right.T) @ triangle.T
    energies, directions = torch.linalg.eigh((core + core.T) / 2)
    leading = directions[:, -rank:].flip(1)
    total = float(energies.clamp(min=0).sum())
    lost = float(energies[:-rank].clamp(min=0).sum())
    error = (lost / total) ** 0.5 if total > 0 else 0.0
    return LowRankUpdate(basis @ leading, leading.T @ triangle @ right), error
