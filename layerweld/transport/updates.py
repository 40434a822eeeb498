"""A site's updates themselves, as Flower records, and back."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import RecordDict
from torch import Tensor

from layerweld.transport.arrays import read_arrays, to_arrays
from layerweld.transport.layout import Budget, Layout, Shapes
from layerweld.transport.subject import reply_layout
from layerweld.transport.untrusted import refusing_malformed
from layerweld.updates.named_tensors import (
    site_tensors,
    update_tensors,
    updates_by_site,
    updates_from,
)
from layerweld.updates.update import Update

_UPDATES = "updates"


def encode_updates(updates: Mapping[str, Update]) -> RecordDict:
    """A site's updates, by layer."""
    return RecordDict({_UPDATES: to_arrays(update_tensors(updates))})


def updates_budget(shapes: Shapes) -> Budget:
    """What the reply may take."""
    return _layout(shapes).budget


def decode_updates(content: RecordDict, shapes: Shapes) -> dict[str, Update]:
    """Inverse of :func:`encode_updates`, for a reply that nobody vouches for.

    Args:
        content: of the reply.
        shapes: :func:`layerweld.transport.expected.update_shapes`.

    Raises:
        RefusedReplyError: an array is missing or has another shape, or something else came along.
    """
    with refusing_malformed():
        _layout(shapes).check(content)
        return updates_from(read_arrays(content.array_records[_UPDATES], shapes))


def all_updates(tensors: Mapping[str, Tensor]) -> dict[str, Update]:
    """Updates out of tensors of which each must belong to one.

    Raises:
        KeyError: half of an update is missing.
        ValueError: two halves do not fit, or a tensor is no part of an update.
    """
    updates = updates_from(tensors)
    if update_tensors(updates).keys() != tensors.keys():
        raise ValueError("a tensor is no part of an update")
    return updates


def all_updates_by_site(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Update]]:
    """As :func:`all_updates`, of several sites or steps."""
    by_site = updates_by_site(tensors)
    if site_tensors(by_site).keys() != tensors.keys():
        raise ValueError("a tensor is no part of an update")
    return by_site


def _layout(shapes: Shapes) -> Layout:
    return reply_layout(Layout(arrays={_UPDATES: shapes}))
