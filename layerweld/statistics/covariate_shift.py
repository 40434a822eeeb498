"""Merging covariate shift: how far merging moved a layer's inputs. Pure tensor code."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from layerweld.statistics.gram import GramAccumulator, with_diagonal


class MomentAccumulator:
    """Streaming mean and covariance of a layer's input tokens, in float64.

    Args:
        d_in: width of the input.
        device: where to accumulate; the inputs are moved there, the moments stay there.
    """

    def __init__(self, d_in: int, *, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(d_in, dtype=torch.float64, device=device)
        self._gram = GramAccumulator(d_in, unit_tokens=False, device=device)

    def update(
        self, inputs: Float[Tensor, "batch seq d_in"], keep: Bool[Tensor, "batch seq"]
    ) -> None:
        """Add one batch; ``keep`` is False on padding."""
        self._sum += inputs[keep].to(self._sum).sum(dim=0)
        self._gram.update(inputs, keep)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``(d_in,)`` and covariance ``(d_in, d_in)`` over the tokens seen."""
        mean = self._sum / self._gram.num_tokens
        return mean, self._gram.mean() - torch.outer(mean, mean)


def squared_wasserstein(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: one term of eq. 8 of the paper.

    ``‖μ - μ̂‖² + Tr[Σ + Σ̂ - 2 (Σ̂^½ Σ Σ̂^½)^½]``. The last trace is the sum of the square roots of
    the eigenvalues of ``Lᵀ Σ L`` with ``L Lᵀ = Σ̂``; a jitter of 1e-12 of the mean variance makes
    ``L`` exist for covariances of fewer tokens than features.
    """
    d = len(mean)
    jitter = 1e-12 * float(other_covariance.trace()) / d + torch.finfo(torch.float64).tiny
    factor, failed_at = torch.linalg.cholesky_ex(with_diagonal(other_covariance, jitter))
    if failed_at:
        values, vectors = torch.linalg.eigh(other_covariance)
        factor = vectors * values.clamp(min=0).sqrt()
    overlap = torch.linalg.eigvalsh(factor.T @ covariance @ factor).clamp(min=0).sqrt().sum()
    spread = covariance.trace() + other_covariance.trace() - 2 * overlap
    return max(0.0, float((mean - other_mean).square().sum() + spread))
