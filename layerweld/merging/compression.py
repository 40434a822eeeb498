"""A merge with every update cut to one rank. Pure tensor code: no models, no files, no network."""

from layerweld.merging.one_round import Merge
from layerweld.merging.spectral import relative_distance, truncated


def compressed(merge: Merge, rank: int) -> Merge:
    """The closest merge of that rank, and how far it is away; rank 0 is the merge itself."""
    if not rank:
        return merge
    updates = {layer: truncated(update, rank) for layer, update in merge.updates.items()}
    error = relative_distance(updates.values(), merge.updates.values())
    return Merge(updates, {**merge.metrics, "compression error": error})
