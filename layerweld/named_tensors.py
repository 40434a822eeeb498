"""Updates as named tensors: how they travel, lie in files, and enter hashes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from layerweld.updates import DenseUpdate, LowRankUpdate, Update


def factors(layer: str, update: Update) -> dict[str, Tensor]:
    """The tensors of one update by their name on the wire and in files."""
    if isinstance(update, LowRankUpdate):
        return {f"{layer}/left": update.left, f"{layer}/right": update.right}
    return {f"{layer}/weight": update.weight}


def update_tensors(updates: Mapping[str, Update]) -> dict[str, Tensor]:
    """The tensors of several updates, by ``layer/left``, ``layer/right`` or ``layer/weight``."""
    return {
        name: tensor
        for layer, update in updates.items()
        for name, tensor in factors(layer, update).items()
    }


def updates_from(tensors: Mapping[str, Tensor]) -> dict[str, Update]:
    """Inverse of :func:`update_tensors`."""
    updates: dict[str, Update] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition("/")
        if part == "left":
            updates[layer] = LowRankUpdate(tensor, tensors[f"{layer}/right"])
        elif part == "weight":
            updates[layer] = DenseUpdate(tensor)
    return updates
