"""The normal equations of one layer group. Pure tensor code: no models, no files, no network."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from layerweld.statistics.gram import with_diagonal

_CONVERGED = 1e-10
"""Squared relative residual at which descent ends, as scipy's does. Going on would fit rounding:
float32 statistics leave 1e-7 of the right-hand side in directions that S does not have."""


_ROUNDING = 64
"""Eigenvalues of a unit-diagonal matrix below this many ``d_in · eps`` are taken for zero."""


@dataclass(frozen=True)
class RegularizedGram:
    """``S + λI``, factorised once for all layers that share it.

    Attributes:
        gram: ``S``, ``(d_in, d_in)`` float64, without the ridge.
        ridge: ``λ``, in units of ``S``.
        condition: lower bound of the condition number after scaling to unit diagonal, read off the
            Cholesky factor; of the kept spectrum where the eigen-decomposition had to serve.
    """

    gram: Tensor
    ridge: float
    condition: float
    _scale: Tensor
    _cholesky: Tensor | None
    _pseudo_inverse: Tensor | None

    def approach(
        self,
        rows: Float64[Tensor, "rows d_in"],
        start: Float64[Tensor, "rows d_in"],
        metric: Float64[Tensor, "rows rows"] | None,
        iterations: int,
    ) -> Float64[Tensor, "rows d_in"]:
        """``X`` such that ``L X`` is near ``L rows (S + λI)⁻¹``, by descent.

        Conjugate gradients from ``start``, with the steps that they would take on the products
        themselves: inner products are those of ``L X``. Few steps leave the directions that
        the calibration tokens hardly excite where they started (MaTS, Tam et al. 2024).

        Args:
            rows: the right-hand side.
            start: where to begin, in the same factored form.
            metric: ``Lᵀ L`` of what all rows are multiplied by from the left; None for nothing.
            iterations: steps; fewer if nothing is left to gain.
        """
        solution, residual = start, rows - self._times(start)
        direction, size = residual, _inner(residual, residual, metric)
        enough = _CONVERGED * _inner(rows, rows, metric)
        for _ in range(iterations):
            image = self._times(direction)
            curvature = _inner(direction, image, metric)
            # Factors that cancel leave rounding, of either sign, in place of a sum of squares.
            if not size > max(0.0, enough) or not curvature > 0:
                break
            step = size / curvature
            solution, residual = solution + step * direction, residual - step * image
            before, size = size, _inner(residual, residual, metric)
            direction = residual + size / before * direction
        return solution

    def _times(self, rows: Tensor) -> Tensor:
        return rows @ self.gram + self.ridge * rows

    def solve(self, rows: Float64[Tensor, "rows d_in"]) -> Float64[Tensor, "rows d_in"]:
        """``rows (S + λI)⁻¹``; the pseudo-inverse where the matrix is singular."""
        if self._cholesky is None:
            assert self._pseudo_inverse is not None
            return rows @ self._pseudo_inverse
        scaled = torch.cholesky_solve((rows * self._scale).T, self._cholesky).T
        return scaled * self._scale


def _inner(one: Tensor, other: Tensor, metric: Tensor | None) -> float:
    """``tr(oneᵀ M other)``."""
    return float(((one if metric is None else metric @ one) * other).sum())


def _is_invertible(factor: Tensor, floor: float) -> bool:
    """Whether the smallest eigenvalue of ``L Lᵀ`` is more than rounding.

    Pivots do not tell: behind an ill-conditioned leading block a zero comes out as a pivot that is
    far from small. ``1 / ‖L⁻¹‖²``, Frobenius, is a lower bound that is within a factor d_in.

    Args:
        factor: ``L``, ``(d_in, d_in)``, of a matrix with unit diagonal.
        floor: what the smallest eigenvalue is known to exceed; spares the estimate where it does.
    """
    rounding = _ROUNDING * len(factor) * torch.finfo(torch.float64).eps
    if floor > rounding:
        return True
    eye = torch.eye(len(factor), dtype=factor.dtype)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    return float(inverse.square().sum().reciprocal()) > rounding


def regularize(gram: Float64[Tensor, "d_in d_in"], ridge: float) -> RegularizedGram:
    """Add ``λ = ridge · tr(S) / d_in`` to the diagonal and factorise.

    Cholesky on the matrix scaled to unit diagonal, which is within a factor d_in of the best
    conditioning any diagonal scaling can reach (van der Sluis 1969). A matrix that has no Cholesky
    factor (no ridge and fewer tokens than features) is decomposed into eigenvectors instead, and
    directions that the calibration tokens never excited are left out: there the merged update is 0.

    Args:
        gram: ``S = Σ ω_i G_i``, symmetric positive semi-definite.
        ridge: fraction of mean(diag S); 0 for none.
    """
    d_in = len(gram)
    ridge_value = ridge * float(gram.trace()) / d_in
    matrix = with_diagonal(gram, ridge_value)
    diagonal = matrix.diagonal()
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), torch.ones_like(diagonal))
    factor, failed_at = torch.linalg.cholesky_ex(matrix * scale * scale[:, None])
    floor = ridge_value / float(diagonal.max()) if ridge_value else 0.0  # since S itself is ≥ 0
    if not failed_at and _is_invertible(factor, floor):
        pivots = factor.diagonal()
        condition = (float(pivots.max()) / float(pivots.min())) ** 2
        return RegularizedGram(gram, ridge_value, condition, scale, factor, None)
    values, vectors = torch.linalg.eigh(matrix)
    largest = float(values[-1])
    excited = values > d_in * torch.finfo(torch.float32).eps * largest
    inverse = (vectors[:, excited] / values[excited]) @ vectors[:, excited].T
    condition = largest / float(values[excited].min()) if bool(excited.any()) else 1.0
    return RegularizedGram(gram, ridge_value, condition, scale, None, inverse)
