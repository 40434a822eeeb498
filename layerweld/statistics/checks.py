"""What a site's statistics must be like, and how large their products are. Pure tensor code.

Nothing that a site says of its own statistics is believed: not a weight, not an energy. What is
needed is computed from the Gram matrix and the products, through the one factor made here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.statistics.gram import shrink, with_diagonal
from layerweld.statistics.group import GroupStatistics, Product
from layerweld.updates.bounds import LARGEST_WEIGHT, is_usable, largest, largest_of_update
from layerweld.updates.update import Update

SILENT = 1e-6
"""ε, as a share of tr G: what float32 leaves of a Gram matrix's smallest eigenvalues, 16 times
over. Directions with less than that are taken to have that much."""

_DEAD = 1e-9
"""A feature with less than this share of tr G never fires."""
_DEAD_SHARE = 0.01
"""Largest squared column of a product there, in units of what would be all of its energy."""
_CONTRADICTION = 1e-3
"""Relative error of ``A G`` beside the ``A`` that is sent along; float32 rounding is 1e-7."""
_UNDERFLOW = 1e-30
"""What float32 may lose at its lower end."""


@dataclass(frozen=True)
class Magnitude:
    """How large the update behind one or more products is, as far as the products tell.

    Attributes:
        energy: ``tr[P (G + εI)⁻¹ Pᵀ]`` of the product ``P = ΔW G``: at most ``tr[ΔW G ΔWᵀ]``, and
            an upper bound, in units of ω, of what the product moves in the metric of ``S + λI``.
        square: ``‖P (G + εI)⁻¹‖²``, Frobenius: of the smallest update that has this product; at
            most ``‖ΔW‖²``. A product outside of the range of ``G`` has a huge one.
        bound: on every number of that update and of its factors,
            :func:`layerweld.updates.bounds.largest_of_update`.
    """

    energy: float = 0.0
    square: float = 0.0
    bound: float = 0.0

    def __add__(self, other: Magnitude) -> Magnitude:
        return Magnitude(
            self.energy + other.energy, self.square + other.square, max(self.bound, other.bound)
        )


class GramFactor:
    """``G + εI`` of one site, factorised once.

    Args:
        gram: ``(d_in, d_in)`` float64, symmetric; as the products were formed with it, so shrunk.

    Attributes:
        silent: ε, in units of G.
        is_semidefinite: whether G has no negative eigenvalue beyond float32 rounding. Nothing can
            be asked of a factor without it.
    """

    def __init__(self, gram: Float64[Tensor, "d_in d_in"]) -> None:
        self.silent = SILENT * float(gram.trace())
        self._dead = gram.diagonal() <= _DEAD * float(gram.trace())
        self._cholesky, failed_at = torch.linalg.cholesky_ex(with_diagonal(gram, self.silent))
        self.is_semidefinite = not failed_at

    def carries_silence(self, product: Update, magnitude: Magnitude) -> bool:
        """Whether features that never fire carry a part of a product, which no update can do.

        By Cauchy and Schwarz column q of ``ΔW G`` is at most ``sqrt(tr[ΔW G ΔWᵀ] G_qq)`` long.
        """
        columns = product.float64().map_rows(lambda rows: rows[:, self._dead]).dense()
        allowed = _DEAD_SHARE * self.silent * magnitude.energy
        return bool((columns.square().sum(dim=0) > allowed).any())

    def implied_update(self, product: Update) -> Update:
        """``P (G + εI)⁻¹``, in the product's own form, float64."""
        return product.float64().map_rows(lambda p: torch.cholesky_solve(p.T, self._cholesky).T)

    def magnitude(self, product: Update, update: Update) -> Magnitude:
        """How large the update is that has this product with G.

        Everything is a sum of squares: factors that cancel leave next to nothing, and not less.

        Args:
            product: of one layer.
            update: that :meth:`implied_update` makes of it.
        """
        half = torch.linalg.solve_triangular(self._cholesky, product.row_factor().T, upper=False)
        return Magnitude(float(half.square().sum()), update.norm**2, largest_of_update(update))


def check_statistics(statistics: GroupStatistics, d_in: int, normalization: str) -> GramFactor:
    """Refuse a Gram matrix that honest data cannot have.

    It is symmetric by construction (only a triangle travels); the rest is checked here: finite,
    a diagonal that the normalisation fixes, ``|G_pq|² ≤ G_pp G_qq``, not all zero, and no negative
    eigenvalue beyond float32 rounding.

    Returns:
        The factor that shows the last of it.

    Raises:
        RefusedReplyError: with the invariant that is broken.
    """
    gram = statistics.gram.double()
    where = f"{statistics.group}: the Gram matrix"
    if gram.shape != (d_in, d_in):
        raise RefusedReplyError(f"{where} is {tuple(gram.shape)}, not {(d_in, d_in)}")
    if not bool(torch.isfinite(statistics.gram).all()):
        raise RefusedReplyError(f"{where} holds a number that is not finite")
    diagonal = gram.diagonal()
    trace = float(diagonal.sum())
    if normalization in ("token", "trace") and abs(trace - 1) > 1e-4:
        raise RefusedReplyError(f"{where} has trace {trace:.6g}; {normalization!r} makes it 1")
    if normalization == "feature" and not bool(((diagonal == 0) | (diagonal == 1)).all()):
        raise RefusedReplyError(f"{where} has a diagonal that is not 1; 'feature' makes it 1")
    if bool((diagonal < 0).any()):
        raise RefusedReplyError(
            f"{where} has a negative number on its diagonal: no data has such moments"
        )
    if not bool((gram.square() <= torch.outer(diagonal, diagonal) * (1 + 1e-4) + 1e-24).all()):
        raise RefusedReplyError(f"{where} breaks |G_pq|² ≤ G_pp G_qq: no data has such moments")
    if trace == 0:
        raise RefusedReplyError(
            f"{where} is all zero: no sample excites these layers; give it other samples"
        )
    factor = GramFactor(gram)
    if not factor.is_semidefinite:
        raise RefusedReplyError(f"{where} has a negative eigenvalue: no data has such moments")
    return factor


def check_product(
    product: Product, gram: Tensor, shape: tuple[int, int], shrinkage: float, where: str
) -> None:
    """Refuse a product of another form than its place needs, or that contradicts its own update.

    Args:
        product: of one layer.
        gram: of the same site, float64, not shrunk.
        shape: ``(d_out, d_in)`` of the layer.
        shrinkage: of the run.
        where: the layer, for the message.

    Raises:
        RefusedReplyError: a tensor has another shape, or numbers that are not finite or larger
            than a model's weights can be; or the update that is sent along has another product.
    """
    if product.moments.shape != shape:
        raise RefusedReplyError(f"{where}: a product of {product.moments.shape}, not {shape}")
    if product.own is not None and product.own.shape != product.moments.rows.shape:
        raise RefusedReplyError(f"{where}: an update of another shape than its product")
    for name, tensor in product.tensors().items():
        if not bool(torch.isfinite(tensor).all()):
            raise RefusedReplyError(f"{where}: {name} holds a number that is not finite")
        if tensor is not product.moments.rows and not is_usable(tensor):
            raise RefusedReplyError(
                f"{where}: {name} has numbers up to {largest(tensor):.3g}, and no update of a "
                f"model has any beyond {LARGEST_WEIGHT:.0f}"
            )
    _check_consistency(product, gram, shrinkage, where)


def _check_consistency(product: Product, gram: Tensor, shrinkage: float, where: str) -> None:
    """``A`` and ``A G``, or ``ΔW`` and ``ΔW G``, where both are sent."""
    if product.own is None:
        return
    expected = product.own.double() @ shrink(gram, shrinkage)
    error = float((product.moments.rows.double() - expected).norm())
    if not error <= _CONTRADICTION * float(expected.norm()) + _UNDERFLOW:
        raise RefusedReplyError(
            f"{where}: the product is not that of the update that was sent along with the Gram "
            f"matrix that was sent"
        )
