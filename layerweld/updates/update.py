"""The LoRA update (task vector) of one layer as a value: factored or dense. Pure tensor code.

Weights are in ``nn.Linear`` layout everywhere: ``(d_out, d_in)``. GPT-2's ``Conv1D`` stores the
transpose; that is turned around where a module is touched (:mod:`layerweld.plan`), never here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankUpdate:
    """``ΔW = left @ right``; the LoRA scaling is already inside ``left``.

    Attributes:
        left: ``(d_out, rank)``, the scaled ``B``.
        right: ``(rank, d_in)``, the ``A``.
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != len(self.right):
            raise ValueError(
                f"factors of shapes {tuple(self.left.shape)} and {tuple(self.right.shape)} "
                f"have no common rank"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """Columns of ``left``: an upper bound of the rank of ``ΔW``."""
        return self.right.shape[0]

    def dense(self) -> Tensor:
        """``ΔW`` itself, ``(d_out, d_in)``."""
        return self.left @ self.right

    @property
    def is_zero(self) -> bool:
        """Whether a factor is zero altogether, as ``B`` is before training."""
        return not (self.left.any() and self.right.any())

    @property
    def norm(self) -> float:
        """``‖ΔW‖``, Frobenius, without the product; in float64."""
        triangle = torch.linalg.qr(self.left.double(), mode="r").R
        return float((triangle @ self.right.double()).norm())

    def __mul__(self, factor: float) -> LowRankUpdate:
        return LowRankUpdate(self.left * factor, self.right)


@dataclass(frozen=True)
class DenseUpdate:
    """``ΔW`` as it is, ``(d_out, d_in)``; what full fine-tuning leaves behind."""

    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.weight.shape[0], self.weight.shape[1]

    def dense(self) -> Tensor:
        """``ΔW`` itself, ``(d_out, d_in)``."""
        return self.weight

    @property
    def is_zero(self) -> bool:
        """Whether no weight changed."""
        return not self.weight.any()

    @property
    def norm(self) -> float:
        """``‖ΔW‖``, Frobenius, in float64."""
        return float(self.weight.double().norm())

    def __mul__(self, factor: float) -> DenseUpdate:
        return DenseUpdate(self.weight * factor)


Update = LowRankUpdate | DenseUpdate


@dataclass(frozen=True)
class TaskVector:
    """What one site's fine-tuning added to the base model.

    Attributes:
        updates: ``ΔW`` of each linear layer, by the layer's name in the backbone
            (``encoder.layer.0.attention.self.query``), float32. A layer that is absent did not
            change.
        remainder: what fine-tuning added to everything that is not such a layer (norms, biases,
            embeddings), by parameter name, float32. Empty for LoRA.
    """

    updates: Mapping[str, Update]
    remainder: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_low_rank(self) -> bool:
        """Whether every update is factored, so that the merge is a LoRA again."""
        return all(isinstance(update, LowRankUpdate) for update in self.updates.values())


def stack(updates: list[LowRankUpdate]) -> LowRankUpdate:
    """The sum of the updates as one factored update of rank ``Σ r_i``, without error."""
    return LowRankUpdate(
        torch.cat([update.left for update in updates], dim=1),
        torch.cat([update.right for update in updates], dim=0),
    )
