"""Updates as named tensors: how they travel, lie in files, and enter hashes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update


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


def site_tensors(updates: Mapping[str, Mapping[str, Update]]) -> dict[str, Tensor]:
    """The tensors of several sites' updates, by ``site/layer/left`` and so on."""
    return {
        f"{site}/{name}": tensor
        for site, of in updates.items()
        for name, tensor in update_tensors(of).items()
    }


def updates_by_site(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Update]]:
    """Inverse of :func:`site_tensors`; no site's name holds a slash."""
    by_site: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        site, _, rest = name.partition("/")
        by_site.setdefault(site, {})[rest] = tensor
    return {site: updates_from(of) for site, of in by_site.items()}
