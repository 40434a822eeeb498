"""Gram matrices of layer inputs. Pure tensor code: no models, no files, no network."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_CHUNK = 4096  # tokens per product: bounds the float64 copy to chunk · d_in numbers
_PANEL = 192  # rows of the triangle per product: 0.6 of the time of the whole square


class GramAccumulator:
    """Streaming mean of ``x xᵀ`` over the calibration tokens of one layer group.

    Products and sums are float64, divided once at the end, so the result does not depend on how
    the tokens were cut into batches (beyond 1e-15). Float32 products of float32 inputs moved the
    merged weights by up to 1e-4 where S is badly conditioned; ``x`` itself is not that noisy.
    Only the upper triangle is computed, panel by panel.

    Args:
        d_in: width of the group's shared input.
        unit_tokens: scale each token vector to unit Euclidean norm first. A vector that is exactly
            zero has no direction and is not counted.
        device: where to accumulate; the inputs are moved there.
    """

    def __init__(self, d_in: int, *, unit_tokens: bool, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)
        self._unit_tokens = unit_tokens
        self.num_tokens = 0

    def update(
        self, inputs: Float[Tensor, "batch seq d_in"], keep: Bool[Tensor, "batch seq"]
    ) -> None:
        """Add one batch. ``keep`` is False on padding, which must not reach the statistics."""
        for tokens in inputs[keep].split(_CHUNK):
            tokens = tokens.to(self._sum)
            if self._unit_tokens:
                norms = tokens.norm(dim=1, keepdim=True)
                tokens = (tokens / norms)[norms[:, 0] > 0]
            for first in range(0, tokens.shape[1], _PANEL):
                rows = slice(first, first + _PANEL)
                self._sum[rows, first:].addmm_(tokens[:, rows].T, tokens[:, first:])
            self.num_tokens += tokens.shape[0]

    def mean(self) -> Float[Tensor, "d_in d_in"]:
        """``Σ x xᵀ / n``: symmetric, positive semi-definite, float64.

        Raises:
            ValueError: no token was seen.
        """
        if self.num_tokens == 0:
            raise ValueError("no calibration token was seen; is the attention mask all False?")
        upper = (self._sum / self.num_tokens).triu()
        return upper + upper.triu(1).T


def normalize(
    gram: Float[Tensor, "d d"], normalization: Literal["token", "feature", "trace", "none"]
) -> Float[Tensor, "d d"]:
    """The mean Gram matrix in the normalisation of the run.

    ``token`` was applied token by token already (:class:`GramAccumulator`) and ``none`` is the
    mean itself: both come back unchanged. ``feature`` scales each feature to unit norm over all
    tokens, a cosine matrix with diagonal 1 (0 where a feature never fired). ``trace`` divides by
    the trace.
    """
    if normalization == "feature":
        diagonal = gram.diagonal()
        scale = torch.where(diagonal > 0, diagonal.rsqrt(), torch.zeros_like(diagonal))
        cosine = gram * torch.outer(scale, scale)  # symmetric to the bit, unlike two products
        return cosine.diagonal_scatter((diagonal > 0).to(gram.dtype))
    if normalization == "trace":
        return gram / gram.trace()
    return gram


def shrink(gram: Float[Tensor, "d d"], factor: float) -> Float[Tensor, "d d"]:
    """Multiply the off-diagonal by ``factor``: 1 changes nothing, 0 leaves the diagonal.

    RegMean's ``reduce_non_diag`` (Jin et al. 2023): it pulls every column towards the average of
    the sites weighted by how strongly each uses that feature.
    """
    if factor == 1:
        return gram
    return (gram * factor).diagonal_scatter(gram.diagonal())


def with_diagonal(gram: Float[Tensor, "d d"], value: float) -> Float[Tensor, "d d"]:
    """``G + value · I``, without an identity matrix in memory."""
    raised = gram.clone()
    raised.diagonal().add_(value)
    return raised


def off_diagonal_importance(gram: Float[Tensor, "d d"]) -> float:
    """``ω = Σ_{p<q} |G_pq|``, eq. 6 of the Chain of Merges paper; summed in float64."""
    magnitudes = gram.double().abs()
    return float((magnitudes.sum() - magnitudes.diagonal().sum()) / 2)


def packed_size(d: int) -> int:
    """Numbers in the upper triangle of a ``d x d`` matrix, its diagonal included."""
    return d * (d + 1) // 2


def pack_symmetric(gram: Float[Tensor, "d d"]) -> Float[Tensor, " packed"]:
    """The upper triangle, row after row: ``d (d + 1) / 2`` numbers instead of ``d²``."""
    if gram.is_meta:  # a shape without numbers
        return gram.new_empty(packed_size(len(gram)))
    return torch.cat([row[i:] for i, row in enumerate(gram)])


def unpack_symmetric(packed: Float[Tensor, " packed"], d: int) -> Float[Tensor, "{d} {d}"]:
    """Inverse of :func:`pack_symmetric`.

    Raises:
        ValueError: ``packed`` is not a triangle of width ``d``.
    """
    if packed.numel() != packed_size(d):
        raise ValueError(
            f"{packed.numel()} numbers are not the upper triangle of a {d} x {d} matrix"
        )
    gram = packed.new_empty(d, d)
    for i, row in enumerate(packed.split(list(range(d, 0, -1)))):
        gram[i, i:] = row
        gram[i:, i] = row
    return gram
