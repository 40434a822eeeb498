"""Singular values and vectors, without the directions that are not there. Pure tensor code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

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

    def leading(self, count: int) -> Spectrum:
        """Its ``count`` largest directions; all of them if there are fewer."""
        return Spectrum(self.left[:, :count], self.values[:count], self.right[:count])


def spectrum_of(matrix: Float64[Tensor, "d_out d_in"]) -> Spectrum:
    """The singular value decomposition of a matrix.

    What is below a millionth of the largest value is left out: its vectors are arbitrary, and
    methods that give every direction a say would give arbitrary ones a say. At least one direction
    is kept.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    there = max(1, int((values > NEGLIGIBLE * values[0]).sum()))
    return Spectrum(left, values, right).leading(there)


def polar(matrix: Float64[Tensor, "rows columns"]) -> Float64[Tensor, "rows columns"]:
    """The closest matrix with orthonormal columns (or rows): ``U Vᵀ`` of ``U S Vᵀ``.

    Where columns depend on each other, as with sites that share a frozen ``A``, ``U`` and ``V`` go
    on with arbitrary vectors. They are left out: what comes back spans what was given, no more.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    there = int((values > NEGLIGIBLE * values[0]).sum())
    closest: Tensor = left[:, :there] @ right[:there]
    return closest
