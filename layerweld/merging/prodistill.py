"""ProDistill: one coefficient per site and entry, learnt block after block. Tensors only."""

from collections.abc import Mapping

import torch
from torch import Tensor

from layerweld.merging.descent import Descent
from layerweld.merging.method import DISTILLATION, Method
from layerweld.settings_table import Positive, Rate, Settings, Steps
from layerweld.updates.update import DenseUpdate, Update


class ProDistill(Settings):
    """Progressive layer-wise distillation (Xu et al. 2025, arXiv:2502.12706)."""

    steps: Steps = 100
    """Steps of Adam per block, each a round over all calibration samples; the authors take 100
    passes over their samples. 0 is task arithmetic."""
    learning_rate: Rate = 0.01
    """Of Adam: about the most that a coefficient moves in a round."""
    start: Positive = 0.3
    """Every coefficient before the first step of its block."""


class EntryCoefficients:
    """``ΔW_M = Σ λ_i ⊙ ΔW_i`` for the layers of one block, and the descent on the λ_i.

    Everything is dense and in float32: coefficients, two moments and task vectors, each sites x
    entries of the block.

    Args:
        updates: of the block's layers, by layer and then by site in the order of names.
        settings: where to start, and how fast to go.
    """

    def __init__(self, updates: Mapping[str, Mapping[str, Update]], settings: ProDistill) -> None:
        self._vectors = {
            layer: torch.stack([update.dense().float() for update in by_site.values()])
            for layer, by_site in updates.items()
        }
        start = [torch.full_like(vectors, settings.start) for vectors in self._vectors.values()]
        self._descent = Descent(start, settings.learning_rate)

    @property
    def merged(self) -> dict[str, Update]:
        """The block's merged updates, as the coefficients are now."""
        return {
            layer: DenseUpdate((coefficients * vectors).sum(dim=0))
            for (layer, vectors), coefficients in zip(
                self._vectors.items(), self._descent.values, strict=True
            )
        }

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``(d_out, d_in)`` by layer."""
        return {
            layer: (vectors.shape[1], vectors.shape[2]) for layer, vectors in self._vectors.items()
        }

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One round: the coefficients' gradient is ``Σ_i ∂D_i/∂W ⊙ ΔW_j``.

        Args:
            gradients: ``Σ_i ∂D_i/∂W`` by layer, ``D_i`` the sites' distances, ``(d_out, d_in)``.
        """
        self._descent.step(
            [gradients[layer].float() * vectors for layer, vectors in self._vectors.items()]
        )


def squared_distance(output: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """``Σ (output - target)²`` over features and real tokens.

    Args:
        output: of the merged block, ``(samples, tokens, d_model)``.
        target: of the site's own block on its own features, of the same shape.
        keep: ``(samples, tokens)``, False on padding.
    """
    return (output - target)[keep].square().sum()


METHODS = (
    Method(
        "prodistill", "ProDistill", "Xu et al. 2025, arXiv:2502.12706",
        "Σ λ_i ⊙ ΔW_i, one λ per site and entry, learnt by Adam block after block: the merged "
        "block behind the merged prefix shall do as the site's own block behind its own",
        ProDistill, kind=DISTILLATION, dense=True,
        tune={"learning-rate": (0.1, 0.001), "start": (0.2, 0.5)},
    ),
)  # fmt: skip
