"""How large a rank may be: one that a site says it has, and one of what is sent to sites."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from layerweld.updates.update import LowRankUpdate, Update

_TRAINED = 256
"""A rank that people train with, whatever the layer's shape: of a gate with one output as well."""
_TIMES_DENSE = 16  # numbers of a factored update over those of its layer: hundreds of sites' ranks


def most_claimed(d_out: int, d_in: int) -> int:
    """The largest rank of an adapter of a layer of this shape that a site may bring.

    No update has a rank above the smaller width. Adapters of small layers say more, since one
    ``r`` is for all layers.
    """
    return min(max(d_out, d_in), max(min(d_out, d_in), _TRAINED))


def most_sent(d_out: int, d_in: int) -> int:
    """The largest rank of an update of this shape that a site takes from its coordinator.

    So large is nothing that the numbers of its factors are more than some times its layer's, but
    for what one honest site may bring to a layer of few outputs or inputs.
    """
    return max(most_claimed(d_out, d_in), _TIMES_DENSE * d_out * d_in // (d_out + d_in))


def within_ranks(update: Update) -> Update:
    """The same update, at the rank of its smaller width if its own is beyond what a site takes.

    However many sites are stacked, and whatever ranks they say they have, every site takes the
    merge of them. It stays a LoRA, exactly but for float32's rounding.
    """
    d_out, d_in = update.shape
    if update.rank <= most_sent(d_out, d_in):
        return update
    whole = update.float64().dense().float()
    if d_out <= d_in:
        return LowRankUpdate(torch.eye(d_out), whole)
    return LowRankUpdate(whole, torch.eye(d_in))


def all_within_ranks(updates: Mapping[str, Update]) -> dict[str, Update]:
    """:func:`within_ranks` of every layer's."""
    return {layer: within_ranks(update) for layer, update in updates.items()}
