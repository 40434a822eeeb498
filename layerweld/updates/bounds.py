"""What numbers and ranks may be kept, sent or written: finite, and no larger than a model's.

Pure tensor code: no models, no files, no network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from layerweld.errors import UnusableMergeError
from layerweld.updates.proportion import Part
from layerweld.updates.update import LowRankUpdate, Update

LARGEST_WEIGHT = 2.0**15
"""No entry of an update, of its factors, or of anything that is added to a parameter is larger.
This is half of what float16 can hold, so that a merge can be served in float16."""
_CANCELLED = 100.0
"""How many times the norm of an update a bound on one of its entries may be."""
_TRAINED = 256
"""A rank that people train with, whatever the layer's shape: of a gate with one output as well."""
_TIMES_DENSE = 16  # numbers of a factored update over those of its layer: hundreds of sites' ranks
_NOTHING = 1e-20
"""A product below it is that of a LoRA that was never trained, whatever its factors are."""


def largest(values: Tensor) -> float:
    """The largest magnitude; infinite if an entry is not a number, 0 if there is no entry."""
    if not values.numel():
        return 0.0
    top = float(values.abs().max())
    return top if top == top else float("inf")


def largest_of_update(update: Update) -> float:
    """A bound on every entry of an update and of its factors; infinite for what is no number."""
    return max(*map(largest, update.tensors().values()), update.largest_entry())


def cancels(update: Update) -> bool:
    """Whether the factors of an update are far larger than their product.

    They would bring nothing but rounding: 0.4 % of the factors' size where they are served in
    bfloat16. The bound on a single entry is at most the rank times the norm of all where the
    factors' directions are anything like those of a trained LoRA.
    """
    return update.largest_entry() > _CANCELLED * update.norm + _NOTHING


def out_of_bounds(updates: Mapping[str, Update]) -> str:
    """The first layer, by name, whose update no model can use; empty if there is none."""
    return next(
        (k for k, u in sorted(updates.items()) if not largest_of_update(u) <= LARGEST_WEIGHT), ""
    )


def part_of(values: Tensor) -> Part:
    """How large one tensor of a site is, where it is anything, to be compared with the others'."""
    return Part(float(values.double().norm()), int(values.count_nonzero()))


def is_usable(values: Tensor) -> bool:
    """Whether every entry is finite and at most :data:`LARGEST_WEIGHT`."""
    return largest(values) <= LARGEST_WEIGHT


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors with numbers that are not finite: none may be kept, sent or written.

    Args:
        tensors: by name.
        where: where they would go, for the message.

    Raises:
        UnusableMergeError: one of them does.
    """
    bad = next((k for k, t in tensors.items() if not bool(torch.isfinite(t).all())), "")
    if bad:
        raise UnusableMergeError(f"{where}: {bad} holds numbers that are not finite")


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
