"""A site's diagonal Fisher information, and its product with the site's updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import RecordDict
from torch import Tensor

from layerweld.plan import MergePlan
from layerweld.transport.arrays import blank, shapes_of, to_arrays
from layerweld.transport.identity import reply_layout
from layerweld.transport.layout import Layout
from layerweld.transport.untrusted import refusing_malformed

FISHER = "train.fisher"
"""Flower's type of the message; its request is a model to measure, the site's individual one."""

_FISHER = "fisher"


@dataclass(frozen=True)
class FisherSums:
    """What one site sends.

    Attributes:
        importance: ``F`` of every layer that is merged, ``(d_out, d_in)``, float32.
        product: ``F ⊙ ΔW`` of the same layers, likewise.
    """

    importance: Mapping[str, Tensor]
    product: Mapping[str, Tensor]


def encode_fisher(sums: FisherSums) -> RecordDict:
    """A site's sums."""
    return RecordDict({_FISHER: to_arrays(_tensors(sums))})


def fisher_layout(plan: MergePlan) -> Layout:
    """All that the reply may hold: two matrices for every layer that is merged."""
    matrices = {layer: blank(*shape) for layer, shape in plan.shapes.items()}
    shapes = shapes_of(_tensors(FisherSums(matrices, matrices)))
    return reply_layout(Layout(arrays={_FISHER: shapes}))


def decode_fisher(content: RecordDict, plan: MergePlan) -> FisherSums:
    """Inverse of :func:`encode_fisher`, for a reply that is not trusted.

    Raises:
        RefusedReplyError: an array is missing or has another shape, or something else came along.
    """
    with refusing_malformed():
        arrays = fisher_layout(plan).read(content)[_FISHER]
        parts = (
            {layer: arrays[f"{part}/{layer}"] for layer in plan.layer_names}
            for part in vars(FisherSums({}, {}))
        )
        return FisherSums(*parts)


def _tensors(sums: FisherSums) -> dict[str, Tensor]:
    return {
        f"{part}/{layer}": tensor
        for part, matrices in vars(sums).items()
        for layer, tensor in matrices.items()
    }
