"""A hash over everything merged so far, so that a stale or foreign message is seen at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from layerweld.named_tensors import factors
from layerweld.schedule import Step
from layerweld.updates import Update


def first_prefix(plan_digest: str, settings_digest: str, remainder: Mapping[str, Tensor]) -> str:
    """The hash before anything is merged: the plan, the settings, and the averaged remainder."""
    digest = hashlib.sha256(f"{plan_digest} {settings_digest}".encode())
    for name, values in sorted(remainder.items()):
        digest.update(_bytes(name, values))
    return digest.hexdigest()


def extend_prefix(prefix: str, updates: Mapping[str, Update]) -> str:
    """The hash after one more step was merged: of the prefix before it and of the step's bits."""
    digest = hashlib.sha256(prefix.encode())
    for layer, update in sorted(updates.items()):
        for name, tensor in factors(layer, update).items():
            digest.update(_bytes(name, tensor))
    return digest.hexdigest()


def prefix_of_step(step: Step, first: str, merged: Mapping[int, Mapping[str, Update]]) -> str:
    """The hash behind which a step is measured.

    Args:
        step: the step.
        first: the hash before anything is merged.
        merged: updates by step; those that the step needs must be there.
    """
    prefix = first
    for index in step.needs:
        prefix = extend_prefix(prefix, merged[index])
    return prefix


def prefix_of_sites(first: str, updates: Mapping[str, Mapping[str, Update]]) -> str:
    """A hash over the updates of several sites, whatever their order.

    Args:
        first: of :func:`first_prefix`.
        updates: by site, then by layer.
    """
    prefix = first
    for site, of in sorted(updates.items()):
        prefix = extend_prefix(f"{prefix} {site}", of)
    return prefix


def _bytes(name: str, tensor: Tensor) -> bytes:
    values = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{name} {tuple(tensor.shape)} ".encode() + values
