"""Add up one layer group's statistics over the sites as they arrive, and solve for the merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerweld.config import MergeSettings
from layerweld.errors import RefusedReplyError
from layerweld.exact_sum import FLOOR, LIMIT, ExactSum
from layerweld.gram import off_diagonal_importance, shrink
from layerweld.influence import capped_scales, relative_shift
from layerweld.layer_pools import Equations, LayerPool, fits, new_pool
from layerweld.plan import LayerGroup
from layerweld.solve import regularize
from layerweld.statistics import (
    DenseProduct,
    GroupStatistics,
    LowRankProduct,
    Product,
    check_product,
    check_statistics,
)
from layerweld.updates import Update


@dataclass(frozen=True)
class GroupSolution:
    """The merged updates of one group, and how far to trust them.

    Attributes:
        group: the layer group's name.
        updates: float32, by layer. A layer that no site fine-tuned is absent.
        importance: ω by site.
        tokens: calibration tokens by site.
        condition: of the regularised matrix, scaled to unit diagonal.
        ridge: λ, in units of S.
        residual: share of the sites' updates that one layer cannot reproduce,
            ``Σ ω_i tr[(ΔW_M - ΔW_i) G_i (…)ᵀ] / Σ ω_i tr[ΔW_i G_i ΔW_iᵀ]``.
        compression_error: relative, in the metric of S, of the group's worst layer.
        influence: by site, how far it moves the merge of the others, relative and in the metric
            of S; empty if nobody asked, or there is one site only.
    """

    group: str
    updates: Mapping[str, Update]
    importance: Mapping[str, float]
    tokens: Mapping[str, int]
    condition: float
    ridge: float
    residual: float
    compression_error: float
    influence: Mapping[str, float]


class GroupPool:
    """``S = Σ ω_i G_i`` and ``R = Σ ω_i ΔW_i G_i`` of one layer group.

    Replies are added as they come. The sums are exact (:class:`ExactSum`) and factors are stacked
    in the order of the sites' names, so the solution has the same bits in whatever order the sites
    answer. Where the settings cap a site's share or ask for its influence, its statistics are kept
    until the group is solved, to be taken off the sums again; else they are forgotten.

    What can buy a site influence: not the number of tokens or samples it claims, which nothing is
    computed from; ω is computed here, from G. ``token`` and ``trace`` fix tr G = 1 and so bound
    ω ≤ (d_in - 1) / 2, ``feature`` bounds ω ≤ d_in (d_in - 1) / 2: a site that sends G with all
    entries equal gets that much. ``none`` bounds nothing: c times the activations are c⁴ times the
    weight. ``max_share`` caps all of these; ``importance = "uniform"`` leaves only G itself. A
    large ΔW moves the merge in proportion; nothing caps it, the influence shows it.

    Args:
        group: the layer group.
        settings: normalisation, importance, shrinkage, ridge, anchor, rank, cap and influence.
    """

    def __init__(self, group: LayerGroup, settings: MergeSettings) -> None:
        self.group = group
        self.settings = settings
        self._gram = ExactSum((group.d_in, group.d_in))
        self._layers: dict[str, LayerPool] = {}
        self._weights: dict[str, float] = {}  # of what was checked and not yet folded
        self._importance: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._energy = ExactSum(())
        self._keeps = settings.influence or settings.max_share < 1
        self._kept: dict[str, GroupStatistics] = {}

    def add(self, site: str, statistics: GroupStatistics) -> None:
        """Check one site's statistics and add them.

        Raises:
            RefusedReplyError: as :meth:`check`. Nothing was added then.
        """
        self.check(site, statistics)
        self.fold(site, statistics)

    def fold(self, site: str, statistics: GroupStatistics) -> None:
        """Add statistics that :meth:`check` has passed."""
        weight = self._weights.pop(site)
        self._gram.add(weight * statistics.gram.double())
        for layer, product in statistics.products.items():
            self._pool_of(layer, product).add(site, weight, product)
            self._energy.add(torch.tensor(weight * product.energy, dtype=torch.float64))
        self._importance[site] = weight
        self._tokens[site] = statistics.num_tokens
        if self._keeps:
            self._kept[site] = statistics

    def solve(self) -> GroupSolution:
        """The merged updates from what was added."""
        scales, total = self._scales(), self._gram.total()
        equations = self._equations(total, scales)
        solved = {name: pool.solve(equations) for name, pool in self._pools_under(scales)}
        energy = float(self._energy.total()) - self._off(scales, _energy_of)
        misfit = energy + sum(one.misfit for one in solved.values())
        return GroupSolution(
            group=self.group.name,
            updates={layer: one.update for layer, one in solved.items()},
            importance={s: w * scales.get(s, 1.0) for s, w in sorted(self._importance.items())},
            tokens=dict(sorted(self._tokens.items())),
            condition=equations.system.condition,
            ridge=equations.system.ridge,
            residual=max(0.0, misfit / energy) if energy > 0 else 0.0,
            compression_error=max((one.compression_error for one in solved.values()), default=0.0),
            influence=self._influence(total, equations) if self.settings.influence else {},
        )

    def _scales(self) -> dict[str, float]:
        """What the cap takes each site's weight down to; empty where there is no cap."""
        if self.settings.max_share == 1:
            return {}
        masses = {
            site: self._importance[site] * float(statistics.gram.double().trace())
            for site, statistics in self._kept.items()
        }
        return capped_scales(masses, self.settings.max_share)

    def _equations(self, total: Tensor, scales: Mapping[str, float]) -> Equations:
        """With each site's weight multiplied by its scale (1 if absent); 0 leaves it out.

        Args:
            total: S with every weight as it is.
            scales: by site.
        """
        gram = total - self._off(scales, lambda kept: kept.gram.double()) if scales else total
        system = regularize(shrink(gram, self.settings.shrinkage), self.settings.ridge)
        left_out = sum(1 for scale in scales.values() if scale == 0)
        return Equations(system, len(self._importance) - left_out, self.settings, scales)

    def _pools_under(self, scales: Mapping[str, float]) -> Iterator[tuple[str, LayerPool]]:
        """The layers that a site is left in, in the group's order."""
        for shape in self.group.layers:
            pool = self._layers.get(shape.name)
            if pool is not None and pool.has_any(scales):
                yield shape.name, pool

    def _off(self, scales: Mapping[str, float], part: Callable[[GroupStatistics], Any]) -> Any:
        """What the scales take off a weighted sum of parts, site by site in their order."""
        return sum(
            (1 - scale) * self._importance[site] * part(self._kept[site])
            for site, scale in sorted(scales.items())
            if scale < 1
        )

    def _influence(self, total: Tensor, equations: Equations) -> dict[str, float]:
        """How far each site moves the merge of the others; see :func:`relative_shift`."""
        if len(self._importance) < 2:
            return {}
        merged = self._updates(equations)
        shifts = {}
        for site in sorted(self._importance):
            without = self._updates(self._equations(total, {**equations.scales, site: 0.0}))
            shifts[site] = relative_shift(merged, without, equations.system.gram)
        return shifts

    def _updates(self, equations: Equations) -> dict[str, Update]:
        return {name: pool.update(equations) for name, pool in self._pools_under(equations.scales)}

    def _weight(self, statistics: GroupStatistics) -> float:
        """ω; a single feature has no off-diagonal, and there every site counts alike."""
        uniform = self.settings.importance == "uniform" or self.group.d_in == 1
        return 1.0 if uniform else off_diagonal_importance(statistics.gram)

    def check(self, site: str, statistics: GroupStatistics) -> None:
        """Refuse statistics that honest data cannot give, or that nobody asked for.

        Raises:
            RefusedReplyError: wrong group, shape or form, a broken invariant, numbers that the
                exact sum cannot hold or would lose, or a second reply of the same site.
        """
        if site in self._importance:
            raise RefusedReplyError(f"{site} answered for {self.group.name} twice")
        if statistics.group != self.group.name:
            raise RefusedReplyError(
                f"{site} sent {statistics.group!r} where {self.group.name!r} was asked"
            )
        if statistics.num_tokens < 1:
            raise RefusedReplyError(f"{site} counted {statistics.num_tokens} tokens")
        check_statistics(statistics, self.group.d_in, self.settings.normalization)
        d_out = {shape.name: shape.d_out for shape in self.group.layers}
        for layer, product in statistics.products.items():
            if layer not in d_out:
                raise RefusedReplyError(f"{layer!r} is not a layer of {self.group.name}")
            _check_shapes(product, (d_out[layer], self.group.d_in), layer)
            check_product(product, statistics.gram.double().diagonal(), layer)
            known = self._layers.get(layer)
            if known is not None and not fits(known, product):
                raise RefusedReplyError(f"{layer}: factored and dense products in one run")
            if self.settings.anchor == "mean" and _own_update(product) is None:
                raise RefusedReplyError(f"{layer}: the anchor 'mean' needs the update itself")
        weight = self._weight(statistics)
        self._check_summable(site, weight, statistics)
        self._weights[site] = weight

    def _check_summable(self, site: str, weight: float, statistics: GroupStatistics) -> None:
        largest = max(1.0, weight) * _largest(statistics)
        if not largest < LIMIT:
            raise RefusedReplyError(
                f"{self.group.name}: {site} sent numbers up to {largest:.3g} once weighted, too "
                f"large to sum exactly; every normalization but 'none' keeps them small"
            )
        moment = float(statistics.gram.double().abs().max())
        if weight * moment < FLOOR:
            raise RefusedReplyError(
                f"{self.group.name}: {site} would count for nothing: its weight {weight:.3g} times "
                f"a largest moment of {moment:.3g} is too little to sum exactly; give the site "
                f"other rows, or set `merge.importance` to 'uniform' where the weight is 0 and "
                f"`merge.normalization` to 'token' where the moment is tiny"
            )

    def _pool_of(self, layer: str, product: Product) -> LayerPool:
        d_out = next(shape.d_out for shape in self.group.layers if shape.name == layer)
        if layer not in self._layers:
            shape = (d_out, self.group.d_in)
            self._layers[layer] = new_pool(product, shape, keeps=self._keeps)
        return self._layers[layer]


def _largest(statistics: GroupStatistics) -> float:
    """The largest magnitude of anything that goes into an :class:`ExactSum` unweighted."""
    products = statistics.products.values()
    dense = [t for p in products if isinstance(p, DenseProduct) for t in p.tensors().values()]
    magnitudes = [float(t.abs().max()) for t in (statistics.gram, *dense)]
    return max(*magnitudes, 0.0, *(product.energy for product in products))


def _own_update(product: Product) -> Tensor | None:
    return product.factor if isinstance(product, LowRankProduct) else product.update


def _energy_of(statistics: GroupStatistics) -> float:
    return sum(product.energy for product in statistics.products.values())


def _check_shapes(product: Product, shape: tuple[int, int], layer: str) -> None:
    if isinstance(product, LowRankProduct):
        rank = product.right.shape[0] if product.right.ndim == 2 else -1
        expected = {"left": (shape[0], rank), "right": (rank, shape[1]), "factor": (rank, shape[1])}
    else:
        expected = {"product": shape, "update": shape}
    for name, tensor in product.tensors().items():
        if tuple(tensor.shape) != expected[name]:
            raise RefusedReplyError(
                f"{layer}: {name} is {tuple(tensor.shape)}, not {expected[name]}"
            )
