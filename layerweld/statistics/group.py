"""What one site sends about one layer group: a Gram matrix and its products with the updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layerweld.plan import LayerGroup
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.gram import (
    GramAccumulator,
    normalize,
    pack_symmetric,
    shrink,
    unpack_symmetric,
)
from layerweld.updates.named_tensors import blank_update
from layerweld.updates.update import DenseUpdate, Update, update_from

_PARTS = {"left": "left", "right": "right", "weight": "product"}
_OWN = {True: "factor", False: "update"}
"""Names on the wire of a product's parts, and of what is sent along: with factors or without."""


@dataclass(frozen=True)
class Product:
    """``ΔW G`` of one layer, factored where ``ΔW`` is: the server needs it in no other way.

    Attributes:
        moments: ``ΔW G`` in float32; of a LoRA ``B`` and ``A G``.
        own: the rows of ``ΔW`` itself, which has the same left factor: of a LoRA ``A``; sent only
            if the anchor is the mean.
    """

    moments: Update
    own: Tensor | None = None

    @property
    def update(self) -> Update | None:
        """``ΔW``, where all of it is sent."""
        own = self.own
        return None if own is None else self.moments.map_rows(lambda _: own)

    def tensors(self) -> dict[str, Tensor]:
        """What travels, by name."""
        sent = {_PARTS[part]: tensor for part, tensor in self.moments.tensors().items()}
        return sent if self.own is None else sent | {_OWN[self.moments.is_low_rank]: self.own}

    @staticmethod
    def from_tensors(sent: Mapping[str, Tensor]) -> Product:
        """Inverse of :meth:`tensors`; a ValueError where these are no product's."""
        moments = update_from({part: sent[name] for part, name in _PARTS.items() if name in sent})
        return Product(moments, sent.get(_OWN[moments.is_low_rank]))


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

    def tensors(self) -> dict[str, Tensor]:
        """What travels, by name; of the Gram matrix the upper triangle."""
        sent = {"gram": pack_symmetric(self.gram)}
        for layer, product in self.products.items():
            sent |= {f"{layer}/{part}": tensor for part, tensor in product.tensors().items()}
        return sent

    @staticmethod
    def from_tensors(
        group: LayerGroup, num_tokens: int, sent: Mapping[str, Tensor]
    ) -> GroupStatistics:
        """Inverse of :meth:`tensors`; a KeyError or ValueError where these are no group's."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in sent.items():
            layer, _, part = name.rpartition("/")
            parts.setdefault(layer, {})[part] = tensor
        gram = unpack_symmetric(parts.pop("")["gram"], group.d_in)
        products = {layer: Product.from_tensors(own) for layer, own in parts.items()}
        return GroupStatistics(group.name, gram, products, num_tokens)


@dataclass(frozen=True)
class ProductForm:
    """How products travel: the same at all sites of a run."""

    dense: bool
    with_updates: bool


class GroupAccumulator:
    """What one layer group's inputs are measured for, batch by batch.

    Args:
        group: the layer group.
        settings: normalisation and shrinkage are read here.
        device: where to accumulate.
    """

    def __init__(
        self, group: LayerGroup, settings: MergeSettings, device: torch.device | str = "cpu"
    ) -> None:
        self._group, self._settings = group, settings
        unit_tokens = settings.normalization == "token"
        self._gram = GramAccumulator(group.d_in, unit_tokens=unit_tokens, device=device)

    def update(self, inputs: Tensor, keep: Tensor) -> None:
        """Add one batch ``(batch, seq, d_in)``; ``keep`` ``(batch, seq)`` is False on padding."""
        self._gram.update(inputs, keep)

    def statistics(self, updates: Mapping[str, Update], form: ProductForm) -> GroupStatistics:
        """The normalised Gram matrix, and its products with a site's updates.

        Args:
            updates: ``ΔW`` of the layers that the site fine-tuned; those of other groups are
                passed over.
            form: factored or dense, with or without the updates themselves.

        Raises:
            ValueError: no token was seen.
        """
        gram = normalize(self._gram.mean().cpu(), self._settings.normalization).float()
        shrunk = shrink(gram.double(), self._settings.shrinkage)
        products = {
            layer.name: _product(updates[layer.name], shrunk, form)
            for layer in self._group.layers
            if layer.name in updates
        }
        return GroupStatistics(self._group.name, gram, products, self._gram.num_tokens)


def blank_statistics(
    group: LayerGroup, ranks: Mapping[str, int], form: ProductForm
) -> GroupStatistics:
    """Statistics that have the shapes of a site's and no numbers.

    Args:
        group: the layer group.
        ranks: LoRA rank of each layer that the site fine-tuned; 0 where the whole layer changed.
        form: how products travel in this run.
    """
    gram = torch.empty(group.d_in, group.d_in, device="meta")
    products = {}
    for layer in group.layers:
        if layer.name in ranks:
            rank = 0 if form.dense else ranks[layer.name]
            update = blank_update((layer.d_out, group.d_in), rank)
            products[layer.name] = Product(update, update.rows if form.with_updates else None)
    return GroupStatistics(group.name, gram, products, 0)


def _product(update: Update, gram: Tensor, form: ProductForm) -> Product:
    own = DenseUpdate(update.dense()) if form.dense else update
    moments = (own.float64() @ gram).float32()
    return Product(moments, own.rows.float() if form.with_updates else None)
