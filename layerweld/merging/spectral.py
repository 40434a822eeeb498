"""Singular vectors of updates, from the factors where there are factors. Pure tensor code."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update, stack

NEGLIGIBLE = 1e-6
"""Singular values below this fraction of the largest are rounding of float32 factors."""


@dataclass(frozen=True)
class Spectrum:
    """``left @ diag(values) @ right`` with orthonormal columns and rows, largest value first.

    Attributes:
        left: ``(d_out, k)``.
        values: ``(k,)``.
        right: ``(k, d_in)``.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def leading(self, count: int) -> "Spectrum":
        """Its ``count`` largest directions; all of them if there are fewer."""
        return Spectrum(self.left[:, :count], self.values[:count], self.right[:count])


def spectrum(update: Update) -> Spectrum:
    """The singular value decomposition in float64, without the directions that are not there.

    A LoRA of rank r is decomposed through two QR factorisations and one ``(r, r)`` matrix. What is
    below a millionth of the largest value is left out: its vectors are arbitrary, and methods that
    give every direction a say would give arbitrary ones a say. At least one direction is kept.
    """
    if isinstance(update, LowRankUpdate):
        q_left, r_left = torch.linalg.qr(update.left.double())
        q_right, r_right = torch.linalg.qr(update.right.double().T)
        left, values, right = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
        left, right = q_left @ left, right @ q_right.T
    else:
        left, values, right = torch.linalg.svd(update.weight.double(), full_matrices=False)
    kept = max(1, int((values > NEGLIGIBLE * values[0]).sum()))
    return Spectrum(left, values, right).leading(kept)


def polar(
    matrix: Float64[Tensor, "rows columns"],
) -> Float64[Tensor, "rows columns"]:
    """The closest matrix with orthonormal columns (or rows): ``U Vᵀ`` of ``U S Vᵀ``.

    Where columns depend on each other, as with sites that share a frozen ``A``, ``U`` and ``V`` go
    on with arbitrary vectors. They are left out: what comes back spans what was given, no more.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    there = int((values > NEGLIGIBLE * values[0]).sum())
    closest: Tensor = left[:, :there] @ right[:there]
    return closest


def summed(updates: Sequence[Update]) -> Update:
    """``Σ ΔW_i``: factors stacked, or a dense float64 sum where one update is dense."""
    low_rank = [update for update in updates if isinstance(update, LowRankUpdate)]
    if len(low_rank) == len(updates):
        return stack(low_rank)
    return DenseUpdate(torch.stack([update.dense().double() for update in updates]).sum(dim=0))


def truncated(update: Update, rank: int) -> LowRankUpdate:
    """The closest update of that rank in the Frobenius norm (Eckart and Young)."""
    kept = spectrum(update).leading(rank)
    return LowRankUpdate((kept.left * kept.values).float(), kept.right.float())


def inner_product(one: Update, other: Update) -> float:
    """``tr(one otherᵀ)`` in float64, from the factors where both have them."""
    if isinstance(one, LowRankUpdate) and isinstance(other, LowRankUpdate):
        lefts = one.left.double().T @ other.left.double()
        rights = one.right.double() @ other.right.double().T
        return float((lefts * rights).sum())
    return float((one.dense().double() * other.dense().double()).sum())


def norm(updates: Sequence[Update]) -> float:
    """Frobenius norm of all the updates together."""
    return math.sqrt(sum(max(0.0, inner_product(update, update)) for update in updates))


def relative_distance(ones: Sequence[Update], others: Sequence[Update]) -> float:
    """``‖one - other‖ / ‖other‖`` over all layers together; 0 where both are zero."""
    squared = whole = 0.0
    for one, other in zip(ones, others, strict=True):
        difference = summed([one, other * -1.0])
        squared += max(0.0, inner_product(difference, difference))
        whole += inner_product(other, other)
    return math.sqrt(squared / whole) if whole > 0 else 0.0
