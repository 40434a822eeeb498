"""Updates as named tensors: how they travel, lie in files, and enter hashes.

A hash over everything merged so far shows a stale or foreign message at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

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


def first_digest(plan_digest: str, settings_digest: str, other_params: Mapping[str, Tensor]) -> str:
    """The hash before anything is merged: the plan, settings and averaged other parameters."""
    return _hash(f"{plan_digest} {settings_digest}", sorted(other_params.items()))


def extend_digest(before: str, updates: Mapping[str, Update]) -> str:
    """The hash after one more step was merged: of the hash before it and of the step's bits."""
    return extend_by_tensors(before, update_tensors(updates))


def extend_by_tensors(before: str, tensors: Mapping[str, Tensor]) -> str:
    """As :func:`extend_digest`, of updates as they lie in a file: damaged ones have a hash too."""
    # By layer, then by part: as whole names, "a.b/left" would come before "a/left".
    names = sorted(tensors, key=lambda name: name.rpartition("/"))
    return _hash(before, ((name, tensors[name]) for name in names))


def digest_of_sites(first: str, updates: Mapping[str, Mapping[str, Update]]) -> str:
    """A hash over the updates of several sites, whatever their order.

    Args:
        first: of :func:`first_digest`.
        updates: by site, then by layer.
    """
    digest = first
    for site, own in sorted(updates.items()):
        digest = extend_digest(f"{digest} {site}", own)
    return digest


def _hash(text: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
