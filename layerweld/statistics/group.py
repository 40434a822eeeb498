"""What one site sends about one layer group: a Gram matrix and its products with the updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from layerweld.statistics.gram import normalize, shrink
from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update


@dataclass(frozen=True)
class LowRankProduct:
    """``ΔW G`` of a LoRA update, as factors: the server never needs it any other way.

    Attributes:
        left: ``(d_out, rank)`` float32, the scaled ``B``.
        right: ``(rank, d_in)`` float32, ``A G``.
        factor: ``(rank, d_in)`` float32, ``A`` itself; sent only if the anchor is the mean.
    """

    left: Tensor
    right: Tensor
    factor: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """What travels, by name."""
        sent = {"left": self.left, "right": self.right}
        return sent if self.factor is None else sent | {"factor": self.factor}

    @property
    def formed(self) -> Tensor:
        """What was multiplied by ``G``: ``A G``."""
        return self.right

    @property
    def own_update(self) -> Tensor | None:
        """The same before that, ``A``, where it is sent along."""
        return self.factor

    @property
    def whole_update(self) -> LowRankUpdate | None:
        """``ΔW``, where all of it is sent."""
        return None if self.factor is None else LowRankUpdate(self.left, self.factor)


@dataclass(frozen=True)
class DenseProduct:
    """``ΔW G`` as it is.

    Attributes:
        product: ``(d_out, d_in)`` float32.
        update: ``(d_out, d_in)`` float32, ``ΔW`` itself; sent only if the anchor is the mean.
    """

    product: Tensor
    update: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """What travels, by name."""
        sent = {"product": self.product}
        return sent if self.update is None else sent | {"update": self.update}

    @property
    def formed(self) -> Tensor:
        """What was multiplied by ``G``: ``ΔW G``."""
        return self.product

    @property
    def own_update(self) -> Tensor | None:
        """The same before that, ``ΔW``, where it is sent along."""
        return self.update

    @property
    def whole_update(self) -> DenseUpdate | None:
        """``ΔW``, where all of it is sent."""
        return None if self.update is None else DenseUpdate(self.update)


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
        mean_gram: ``(d_in, d_in)`` float64, of :class:`~layerweld.statistics.gram.GramAccumulator`.
        num_tokens: tokens it was taken over.
        updates: ``ΔW`` of the group's layers that the site fine-tuned.
        normalization: of the run, see :func:`layerweld.statistics.gram.normalize`.
        shrinkage: factor on the off-diagonal inside the products.
        form: factored or dense, with or without the updates themselves.
    """
    gram = normalize(mean_gram, normalization).float()  # type: ignore[arg-type]
    shrunk = shrink(gram.double(), shrinkage)
    products = {layer: _product(update, shrunk, form) for layer, update in updates.items()}
    return GroupStatistics(group, gram, products, num_tokens)


def _product(update: Update, gram: Tensor, form: ProductForm) -> Product:
    if isinstance(update, LowRankUpdate) and not form.dense:
        right = update.right.double() @ gram
        sent = update.right.float() if form.with_updates else None
        return LowRankProduct(update.left.float(), right.float(), sent)
    weight = update.dense().double()
    sent = weight.float() if form.with_updates else None
    return DenseProduct((weight @ gram).float(), sent)
