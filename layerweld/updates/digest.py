"""A hash over everything merged so far, so that a stale or foreign message is seen at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from layerweld.updates.named_tensors import update_tensors
from layerweld.updates.update import Update


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
