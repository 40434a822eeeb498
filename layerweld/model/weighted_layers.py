"""Layers that add ``Σ λ_i ΔW_i`` to their weight, differentiably in λ: gradients come by autograd.

LoRA updates are never multiplied out: a layer computes ``W_0 x + Σ λ_i B_i (A_i x)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerweld.merging.one_round import SiteUpdates
from layerweld.updates.update import Update, all_low_rank, stack

Addition = Callable[[Tensor, Tensor], Tensor]
"""What a layer's output gains, from the layer's inputs and one coefficient per site."""


@dataclass(frozen=True)
class _Factored:
    """LoRA updates as one: ``left`` and ``right`` side by side, ``owner[k]`` the site of rank k."""

    left: Tensor  # (d_out, Σ r_i)
    right: Tensor  # (Σ r_i, d_in)
    owner: Tensor  # (Σ r_i,)

    def __call__(self, inputs: Tensor, coefficients: Tensor) -> Tensor:
        inside = inputs @ self.right.T * coefficients[self.owner]
        output: Tensor = inside @ self.left.T
        return output


@dataclass(frozen=True)
class _Dense:
    """Whole updates, stacked; ``owner[k]`` is the site of the k-th."""

    weights: Tensor  # (k, d_out, d_in)
    owner: Tensor  # (k,)

    def __call__(self, inputs: Tensor, coefficients: Tensor) -> Tensor:
        weight = torch.tensordot(coefficients[self.owner], self.weights, dims=1)
        output: Tensor = inputs @ weight.T
        return output


def additions(sites: SiteUpdates, device: torch.device) -> dict[str, Addition]:
    """What each layer's output gains, by layer; factored where all of its updates are."""
    row_of = {site: row for row, site in enumerate(sites.sites)}
    return {
        layer: _addition({row_of[site]: update for site, update in by_site.items()}, device)
        for layer, by_site in sites.layers.items()
    }


@contextmanager
def weighted(
    layers: Mapping[str, nn.Module],
    gains: Mapping[str, Addition],
    coefficients: Mapping[str, Tensor],
) -> Iterator[None]:
    """Run with ``W_0 + Σ λ_i ΔW_i`` in the named layers.

    Args:
        layers: by name.
        gains: of :func:`additions`.
        coefficients: one per site, by layer.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        return lambda _layer, inputs, output: output + gains[name](inputs[0], coefficients[name])

    handles = [layers[name].register_forward_hook(hook(name)) for name in gains]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _addition(by_row: Mapping[int, Update], device: torch.device) -> Addition:
    low_rank = all_low_rank(by_row.values())
    if low_rank:
        whole = stack(low_rank)
        ranks = torch.tensor([update.rank for update in low_rank])
        owner = torch.tensor(list(by_row)).repeat_interleave(ranks)
        return _Factored(whole.left.to(device), whole.right.to(device), owner.to(device))
    weights = torch.stack([update.dense().float() for update in by_row.values()])
    return _Dense(weights.to(device), torch.tensor(list(by_row), device=device))
