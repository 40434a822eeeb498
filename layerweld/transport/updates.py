"""A site's updates themselves."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import RecordDict

from layerweld.plan import MergePlan
from layerweld.transport.arrays import shapes_of, to_arrays
from layerweld.transport.identity import reply_layout
from layerweld.transport.layout import Layout
from layerweld.transport.untrusted import refusing_malformed
from layerweld.updates.named_tensors import blank_update, update_tensors, updates_from
from layerweld.updates.update import Update

UPDATES = "train.adapter"
"""Flower's type of the message; its request says no more than what it is about."""

_UPDATES = "updates"


def encode_updates(updates: Mapping[str, Update]) -> RecordDict:
    """A site's updates, by layer."""
    return RecordDict({_UPDATES: to_arrays(update_tensors(updates))})


def updates_layout(plan: MergePlan, ranks: Mapping[str, int]) -> Layout:
    """All that the reply may hold.

    Args:
        plan: the layers that are merged.
        ranks: LoRA rank of each layer that the site fine-tuned; 0 where the whole layer changed.
    """
    updates = {
        layer: blank_update(shape, ranks[layer])
        for layer, shape in plan.shapes.items()
        if layer in ranks
    }
    return reply_layout(Layout(arrays={_UPDATES: shapes_of(update_tensors(updates))}))


def decode_updates(
    content: RecordDict, plan: MergePlan, ranks: Mapping[str, int]
) -> dict[str, Update]:
    """Inverse of :func:`encode_updates`, for a reply that is not trusted.

    Args:
        content: of the reply.
        plan: as :func:`updates_layout` takes it.
        ranks: likewise.

    Raises:
        RefusedReplyError: an array is missing or has another shape, or something else came along.
    """
    with refusing_malformed():
        return updates_from(updates_layout(plan, ranks).read(content)[_UPDATES])
