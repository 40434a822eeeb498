"""What one site sends about one layer group: a Gram matrix and its products with the updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.gram import normalize, shrink, with_diagonal
from layerweld.updates import LowRankUpdate, Update


@dataclass(frozen=True)
class LowRankProduct:
    """``ΔW G`` of a LoRA update, as factors: the server never needs it any other way.

    Attributes:
        left: ``(d_out, rank)`` float32, the scaled ``B``.
        right: ``(rank, d_in)`` float32, ``A G``.
        factor: ``(rank, d_in)`` float32, ``A`` itself; sent only if the anchor is the mean.
        energy: ``tr[ΔW G ΔWᵀ]``, the part of the update that the calibration tokens excite.
    """

    left: Tensor
    right: Tensor
    factor: Tensor | None
    energy: float

    def tensors(self) -> dict[str, Tensor]:
        """What travels, by name."""
        sent = {"left": self.left, "right": self.right}
        return sent if self.factor is None else sent | {"factor": self.factor}


@dataclass(frozen=True)
class DenseProduct:
    """``ΔW G`` as it is.

    Attributes:
        product: ``(d_out, d_in)`` float32.
        update: ``(d_out, d_in)`` float32, ``ΔW`` itself; sent only if the anchor is the mean.
        energy: ``tr[ΔW G ΔWᵀ]``.
    """

    product: Tensor
    update: Tensor | None
    energy: float

    def tensors(self) -> dict[str, Tensor]:
        """What travels, by name."""
        sent = {"product": self.product}
        return sent if self.update is None else sent | {"update": self.update}


Product = LowRankProduct | DenseProduct


@dataclass(frozen=True)
class GroupStatistics:
    """Sufficient statistics of one layer group at one site.

    Attributes:
        group: name of the layer group.
        gram: ``(d_in, d_in)`` float32, the normalised Gram matrix, not yet shrunk: the server
            shrinks the sum, and reads the importance off what arrives.
        products: by layer, formed with the *shrunk* matrix. A layer that the site did not
            fine-tune is absent; its update is zero.
        num_tokens: how many tokens the mean was taken over.
    """

    group: str
    gram: Tensor
    products: Mapping[str, Product]
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """Bytes on the wire: the packed triangle and the products' tensors, in float32."""
        d_in = len(self.gram)
        tensors = [t for product in self.products.values() for t in product.tensors().values()]
        return 4 * (d_in * (d_in + 1) // 2 + sum(tensor.numel() for tensor in tensors))


@dataclass(frozen=True)
class ProductForm:
    """How products travel: the same at all sites of a run."""

    dense: bool
    with_updates: bool


def group_statistics(
    group: str,
    mean_gram: Tensor,
    num_tokens: int,
    updates: Mapping[str, Update],
    *,
    normalization: str,
    shrinkage: float,
    form: ProductForm,
) -> GroupStatistics:
    """Normalise a mean Gram matrix and form its products with a site's updates.

    Args:
        group: name of the layer group.
        mean_gram: ``(d_in, d_in)`` float64, from :class:`layerweld.gram.GramAccumulator`.
        num_tokens: tokens it was taken over.
        updates: ``ΔW`` of the group's layers that the site fine-tuned.
        normalization: of the run, see :func:`layerweld.gram.normalize`.
        shrinkage: factor on the off-diagonal inside the products.
        form: factored or dense, with or without the updates themselves.
    """
    gram = normalize(mean_gram, normalization).float()  # type: ignore[arg-type]
    shrunk = shrink(gram.double(), shrinkage)
    products = {layer: _product(update, shrunk, form) for layer, update in updates.items()}
    return GroupStatistics(group, gram, products, num_tokens)


def _product(update: Update, gram: Tensor, form: ProductForm) -> Product:
    if isinstance(update, LowRankUpdate) and not form.dense:
        left, factor = update.left.double(), update.right.double()
        right = factor @ gram
        energy = float((left.T @ left * (right @ factor.T)).sum())
        sent = update.right.float() if form.with_updates else None
        return LowRankProduct(update.left.float(), right.float(), sent, energy)
    weight = update.dense().double()
    product = weight @ gram
    energy = float((product * weight).sum())
    sent = weight.float() if form.with_updates else None
    return DenseProduct(product.float(), sent, energy)


def check_product(product: Product, diagonal: Tensor, where: str) -> None:
    """Refuse a product that no update has with a Gram matrix of this diagonal.

    By Cauchy and Schwarz column q of ``ΔW G`` is at most ``sqrt(tr[ΔW G ΔWᵀ] G_qq)`` long: a
    feature that never fires cannot carry an update. Without this, a number there would be divided
    by the ridge alone.

    Args:
        product: of one layer; its shapes have been checked.
        diagonal: ``(d_in,)`` of the same site's Gram matrix (shrinking leaves it alone).
        where: the layer, for the message.

    Raises:
        RefusedReplyError: as said, or a number is not finite.
    """
    for name, tensor in product.tensors().items():
        if not bool(torch.isfinite(tensor).all()):
            raise RefusedReplyError(f"{where}: {name} holds a number that is not finite")
    if not 0 <= product.energy < float("inf"):
        raise RefusedReplyError(f"{where}: energy {product.energy} is no sum of squares")
    if isinstance(product, LowRankProduct):
        left, right = product.left.double(), product.right.double()
        squares = (right * (left.T @ left @ right)).sum(dim=0)
    else:
        squares = product.product.double().square().sum(dim=0)
    bound = product.energy * (1.01 * diagonal + 1e-9 * float(diagonal.sum()))
    if not bool((squares <= bound).all()):
        raise RefusedReplyError(
            f"{where}: the product is longer than its energy {product.energy:.3g} and the Gram "
            f"matrix allow: no update has such a product"
        )


def check_statistics(statistics: GroupStatistics, d_in: int, normalization: str) -> None:
    """Refuse a Gram matrix that honest data cannot have.

    It is symmetric by construction (only a triangle travels); the rest is checked here: finite,
    a diagonal that the normalisation fixes, ``|G_pq|² ≤ G_pp G_qq``, not all zero, and no negative
    eigenvalue beyond float32 rounding.

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
            f"{where} is all zero: no row excites these layers; give the site other rows"
        )
    if torch.linalg.cholesky_ex(with_diagonal(gram, 1e-6 * trace)).info:
        raise RefusedReplyError(f"{where} has a negative eigenvalue: no data has such moments")
