"""Sites with random tokens and updates for one layer group, and what they would send."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from layerweld.plan import LayerGroup, LayerShape
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.group import GroupAccumulator, GroupStatistics, ProductForm
from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update

D_IN, D_OUT = 6, 4
GROUP = LayerGroup("attn.{q,v}", 0, D_IN, (LayerShape("q", D_OUT), LayerShape("v", 3)))


@dataclasses.dataclass(frozen=True)
class Site:
    name: str
    tokens: torch.Tensor
    updates: dict[str, Update]


def new_sites(
    count: int,
    seed: int,
    *,
    num_tokens: int = 40,
    dense: bool = False,
    ranks: tuple[int, int, int, int] = (1, 2, 3, 1),
) -> list[Any]:
    """Sites with tokens of their own covariance and updates of different ranks."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def update(d_out: int, rank: int) -> DenseUpdate | LowRankUpdate:
        factored = LowRankUpdate(random(d_out, rank), random(rank, D_IN))
        return DenseUpdate(factored.dense()) if dense else factored

    return [
        Site(
            name,
            random(num_tokens, D_IN) @ random(D_IN, D_IN),
            {"q": update(D_OUT, rank), "v": update(3, rank)},
        )
        for name, rank in zip("abcd"[:count], ranks, strict=False)
    ]


def statistics_of(site: Any, merge: MergeSettings) -> GroupStatistics:
    accumulator = GroupAccumulator(GROUP, merge)
    accumulator.update(site.tokens[None], torch.ones(1, len(site.tokens), dtype=torch.bool))
    form = ProductForm(dense=merge.products == "dense", with_updates=merge.anchor == "mean")
    return accumulator.statistics(site.updates, form)
