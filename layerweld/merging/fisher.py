"""Fisher averaging: every entry weighted by how much a site's loss depends on it. Tensors only."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from layerweld.merging.method import FISHER, Method
from layerweld.settings_table import NonNegative, Settings
from layerweld.updates.exact_sum import ExactSum
from layerweld.updates.update import DenseUpdate, Update

_ROUNDING = 1e-4
"""Relative, of sums over float32 numbers."""


class Fisher(Settings):
    """Fisher-weighted averaging (Matena and Raffel 2022, arXiv:2111.09832)."""

    floor: NonNegative = 1e-6
    """Smallest importance of an entry, where a site's root mean square is 1: where all sites are
    below it, their mean is taken."""


def squared_gradients(
    inputs: Float[Tensor, "samples tokens d_in"], gradients: Float[Tensor, "samples tokens d_out"]
) -> Float[Tensor, "d_out d_in"]:
    """Sum over samples of the squared gradient of the sample's own loss by a linear layer's weight.

    Args:
        inputs: what the layer read.
        gradients: of each sample's loss by what the layer put out; zero at padding.
    """
    total = torch.zeros(gradients.shape[-1], inputs.shape[-1], device=inputs.device)
    for read, gradient in zip(inputs.float(), gradients.float(), strict=True):
        total += (gradient.T @ read).square()
    return total


def normalised(information: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A site's importances with a root mean square of 1 over all layers.

    Squared gradients are small where a model fits its samples well. Without this the site that fits
    worst would decide everything. The authors' code divides by the norm, which differs by a factor
    that is the same for all sites. Importances that are all zero stay so.
    """
    size = _root_mean_square(information)
    return {name: values / size if size > 0 else values for name, values in information.items()}


def problem_with(importance: Mapping[str, Tensor], floor: float) -> str:
    """Why a site cannot have these importances; empty if it can.

    Their root mean square is 1 before the floor lifts the small ones (0 where no loss depends on
    anything), so that no site can give itself more weight than another.

    Args:
        importance: by layer, all layers that are merged.
        floor: of the run.
    """
    for layer, values in importance.items():
        if not bool((values >= floor * (1 - _ROUNDING)).all()):  # False for NaN too
            return f"an importance of {layer!r} is below the floor of {floor:g}, or no number"
    size = _root_mean_square(importance)
    most = math.sqrt(1 + floor**2) * (1 + _ROUNDING)
    return "" if size <= most else f"the importances have a root mean square of {size:.3g}, not 1"


def _root_mean_square(tensors: Mapping[str, Tensor]) -> float:
    squares = sum(float(values.double().square().sum()) for values in tensors.values())
    return math.sqrt(squares / sum(values.numel() for values in tensors.values()))


def implied_update(
    importance: Float[Tensor, "d_out d_in"], product: Float[Tensor, "d_out d_in"]
) -> Float[Tensor, "d_out d_in"]:
    """The ``ΔW`` of ``F ⊙ ΔW``: infinite where only ``F`` is 0, and 0 where both are."""
    silent = (importance == 0) & (product == 0)
    return torch.where(silent, torch.zeros_like(product), product / importance)


class FisherPool:
    """``Σ F_i`` and ``Σ F_i ⊙ ΔW_i`` by layer: sums are all that leaves the sites' side.

    The sums are exact, so that nothing depends on who replied first.

    Args:
        shapes: ``(d_out, d_in)`` by layer.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self._importance = {layer: ExactSum(shape) for layer, shape in shapes.items()}
        self._products = {layer: ExactSum(shape) for layer, shape in shapes.items()}

    def add(
        self,
        layer: str,
        importance: Float[Tensor, "d_out d_in"],
        product: Float[Tensor, "d_out d_in"],
    ) -> None:
        """Add one site's sums of one layer.

        Raises:
            ValueError: another shape, an entry that is not finite, or a negative importance.
        """
        if bool((importance < 0).any()):
            raise ValueError("a squared gradient is negative")
        self._importance[layer].add(importance.double())
        self._products[layer].add(product.double())

    def merged(self) -> dict[str, Update]:
        """``Σ F_i ⊙ ΔW_i / Σ F_i``; 0 where no site's loss depends on the entry at all."""
        updates: dict[str, Update] = {}
        for layer, total in self._importance.items():
            importance = total.total()
            safe = torch.where(importance > 0, importance, torch.ones_like(importance))
            updates[layer] = DenseUpdate((self._products[layer].total() / safe).float())
        return updates


METHODS = (
    Method(
        "fisher", "Fisher averaging", "Matena and Raffel 2022, arXiv:2111.09832",
        "Σ F_i ⊙ ΔW_i / Σ F_i, F_i the mean squared gradient of log p(label | sample) in the "
        "site's own model, divided by its root mean square",
        Fisher, kind=FISHER, sums=True, needs=("labels",), dense=True,
    ),
)  # fmt: skip
