"""Updates as named tensors: how they travel, lie in files, and enter hashes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update, update_from


def update_tensors(updates: Mapping[str, Update]) -> dict[str, Tensor]:
    """The tensors of several updates, by ``layer/left``, ``layer/right`` or ``layer/weight``."""
    return {
        f"{layer}/{part}": tensor
        for layer, update in updates.items()
        for part, tensor in update.tensors().items()
    }


def updates_from(tensors: Mapping[str, Tensor]) -> dict[str, Update]:
    """Inverse of :func:`update_tensors`.

    Raises:
        ValueError: half of an update is missing, two halves do not fit, or a tensor is no
            part of an update.
    """
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition("/")
        by_layer.setdefault(layer, {})[part] = tensor
    return {layer: update_from(parts) for layer, parts in by_layer.items()}


def site_tensors(updates: Mapping[str, Mapping[str, Update]]) -> dict[str, Tensor]:
    """The tensors of several sites' updates, by ``site/layer/left`` and so on."""
    return {
        f"{site}/{name}": tensor
        for site, own in updates.items()
        for name, tensor in update_tensors(own).items()
    }


def updates_by_site(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Update]]:
    """Inverse of :func:`site_tensors`; no site's name holds a slash."""
    by_site: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        site, _, rest = name.partition("/")
        by_site.setdefault(site, {})[rest] = tensor
    return {site: updates_from(own) for site, own in by_site.items()}


def blank_update(shape: tuple[int, int], rank: int) -> Update:
    """An update that has a shape and no numbers; of rank 0 a dense one."""
    d_out, d_in = shape
    if not rank:
        return DenseUpdate(torch.empty(shape, device="meta"))
    return LowRankUpdate(*(torch.empty(s, device="meta") for s in ((d_out, rank), (rank, d_in))))
