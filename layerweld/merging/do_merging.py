"""DO-Merging: pull LoRA factors apart, then merge lengths and directions apart. Tensors only."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, changed, low_rank
from layerweld.settings_table import Positive
from layerweld.updates.update import DenseUpdate, Update

# Choices of ours: the paper's are not published.
_STEPS = 20  # of gradient descent
_RATE = 0.1  # of a step, in units of 1 / σ²
_LOYALTY = 0.1  # weight of staying where a site's factor was


def pulled_apart(factors: Sequence[Float64[Tensor, "_ d"]]) -> list[Tensor]:
    """Descend ``Σ_{i≠j} ‖X_i X_jᵀ‖² / 2 + loyalty · σ² Σ_i ‖X_i - X_i⁰‖²`` from ``X_i⁰``.

    Args:
        factors: one per site: ``A_i``, or ``B_iᵀ``.

    Returns:
        The factors, more orthogonal to each other. ``σ`` is the largest singular value of all of
        them together, which makes rate and loyalty free of units.
    """
    whole = torch.cat(list(factors))
    scale = float(torch.linalg.matrix_norm(whole, ord=2)) ** 2
    sizes = [len(factor) for factor in factors]
    foreign = 1 - torch.block_diag(*[torch.ones(size, size) for size in sizes]).double()
    moved = whole
    for _ in range(_STEPS if scale > 0 else 0):
        apart = 2 * (moved @ moved.T * foreign) @ moved
        moved = moved - _RATE / scale * (apart + 2 * _LOYALTY * scale * (moved - whole))
    return list(moved.split(sizes))


def by_size_and_direction(
    updates: Sequence[Float64[Tensor, "d_out d_in"]],
) -> Float64[Tensor, "d_out d_in"]:
    """Column by column, the mean length times the mean unit vector."""
    stacked = torch.stack(list(updates))
    lengths = stacked.norm(dim=1, keepdim=True)
    directions = stacked / lengths.clamp(min=torch.finfo(stacked.dtype).tiny)
    merged: Tensor = lengths.mean(dim=0) * directions.mean(dim=0)
    return merged


class DoMerging(MergeMethod):
    """DO-Merging, decouple and orthogonalize (Zheng et al. 2025, arXiv:2505.15875).

    After the paper's abstract and a public review, since its code is not published. How far the
    factors are pulled apart is a choice of ours.
    """

    scaling: Positive = 1.0
    """λ on the merged update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """For LoRAs only; the result is dense.

        Raises:
            ValueError: an update is dense.
        """
        return Merge(
            {layer: self._layer(changed(by_site)) for layer, by_site in sites.layers.items()}
        )

    def _layer(self, updates: Mapping[str, Update]) -> Update:
        factors = low_rank(updates).values()
        lefts = pulled_apart([update.left.double().T for update in factors])
        rights = pulled_apart([update.right.double() for update in factors])
        products = [left.T @ right for left, right in zip(lefts, rights, strict=True)]
        return DenseUpdate((self.scaling * by_size_and_direction(products)).float())


METHODS = (
    Method(
        "do-merging", "DO-Merging", "Zheng et al. 2025, arXiv:2505.15875",
        "pull the A_i and the B_i apart by descent, then per column mean length times mean "
        "direction",
        DoMerging, needs=("LoRA",), dense=True,
    ),
)  # fmt: skip
