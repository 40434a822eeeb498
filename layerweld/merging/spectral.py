"""Sums, distances, and nearest updates and merges of lower rank. Pure tensor code."""

import math
from collections.abc import Iterable, Sequence

import torch

from layerweld.merging.one_round import Merge
from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update, all_low_rank, stack


def summed(updates: Sequence[Update]) -> Update:
    """``Σ ΔW_i``: factors stacked, or a dense float64 sum where one update is dense."""
    if low_rank := all_low_rank(updates):
        return stack(low_rank)
    return DenseUpdate(torch.stack([update.dense().double() for update in updates]).sum(dim=0))


def truncated(update: Update, rank: int) -> LowRankUpdate:
    """The closest update of that rank in the Frobenius norm (Eckart and Young)."""
    leading = update.spectrum().leading(rank)
    return LowRankUpdate(leading.left * leading.values, leading.right).float32()


def norm(updates: Iterable[Update]) -> float:
    """Frobenius norm of all the updates together."""
    return math.sqrt(sum(max(0.0, update.inner(update)) for update in updates))


def relative_distance(ones: Iterable[Update], others: Iterable[Update]) -> float:
    """``‖one - other‖ / ‖other‖`` over all layers together; 0 where both are zero."""
    squared = whole = 0.0
    for one, other in zip(ones, others, strict=True):
        difference = summed([one, other * -1.0])
        squared += max(0.0, difference.inner(difference))
        whole += other.inner(other)
    return math.sqrt(squared / whole) if whole > 0 else 0.0


def compressed(merge: Merge, rank: int) -> Merge:
    """The closest merge of that rank, and how far it is away; rank 0 is the merge itself."""
    if not rank:
        return merge
    updates = {layer: truncated(update, rank) for layer, update in merge.updates.items()}
    error = relative_distance(updates.values(), merge.updates.values())
    return Merge(updates, {**merge.metrics, "compression error": error})
