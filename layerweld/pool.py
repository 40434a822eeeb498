"""Add up one layer group's statistics over the sites as they arrive, and solve for the merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layerweld.compress import compress
from layerweld.config import MergeSettings
from layerweld.errors import RefusedReplyError
from layerweld.exact_sum import LIMIT, ExactSum
from layerweld.gram import off_diagonal_importance, shrink
from layerweld.plan import LayerGroup
from layerweld.solve import RegularizedGram, regularize
from layerweld.statistics import (
    DenseProduct,
    GroupStatistics,
    LowRankProduct,
    Product,
    check_statistics,
)
from layerweld.updates import DenseUpdate, LowRankUpdate, Update


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
    """

    group: str
    updates: Mapping[str, Update]
    importance: Mapping[str, float]
    tokens: Mapping[str, int]
    condition: float
    ridge: float
    residual: float
    compression_error: float


class GroupPool:
    """``S = Σ ω_i G_i`` and ``R = Σ ω_i ΔW_i G_i`` of one layer group.

    Replies are added as they come and forgotten. The sums are exact (:class:`ExactSum`) and
    factors are stacked in the order of the sites' names, so the solution has the same bits in
    whatever order the sites answer.

    Args:
        group: the layer group.
        settings: normalisation, importance, shrinkage, ridge, anchor and rank.
    """

    def __init__(self, group: LayerGroup, settings: MergeSettings) -> None:
        self.group = group
        self.settings = settings
        self._gram = ExactSum((group.d_in, group.d_in))
        self._layers: dict[str, _LowRankPool | _DensePool] = {}
        self._importance: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._energy = ExactSum(())

    def add(self, site: str, statistics: GroupStatistics) -> None:
        """Check one site's statistics and add them.

        Raises:
            RefusedReplyError: wrong group, shape or form, a broken invariant, or a second reply
                of the same site. Nothing was added then.
        """
        self._check(site, statistics)
        weight = self._weight(statistics)
        self._gram.add(weight * statistics.gram.double())
        for layer, product in statistics.products.items():
            self._pool_of(layer, product).add(site, weight, product)
            self._energy.add(torch.tensor(weight * product.energy, dtype=torch.float64))
        self._importance[site] = weight
        self._tokens[site] = statistics.num_tokens

    def solve(self) -> GroupSolution:
        """The merged updates from what was added."""
        gram = shrink(self._gram.total(), self.settings.shrinkage)
        system = regularize(gram, self.settings.ridge)
        num_sites = len(self._importance)
        anchored = self.settings.anchor == "mean"
        updates: dict[str, Update] = {}
        misfit, worst = float(self._energy.total()), 0.0
        for layer in (shape.name for shape in self.group.layers if shape.name in self._layers):
            pool = self._layers[layer]
            solved = pool.solve(system, num_sites if anchored else None, self.settings)
            updates[layer] = solved.update
            misfit += solved.misfit
            worst = max(worst, solved.compression_error)
        energy = float(self._energy.total())
        return GroupSolution(
            group=self.group.name,
            updates=updates,
            importance=dict(sorted(self._importance.items())),
            tokens=dict(sorted(self._tokens.items())),
            condition=system.condition,
            ridge=system.ridge,
            residual=max(0.0, misfit / energy) if energy > 0 else 0.0,
            compression_error=worst,
        )

    def _weight(self, statistics: GroupStatistics) -> float:
        uniform = self.settings.importance == "uniform"
        return 1.0 if uniform else off_diagonal_importance(statistics.gram)

    def _check(self, site: str, statistics: GroupStatistics) -> None:
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
            _check_product(product, (d_out[layer], self.group.d_in), layer)
            known = self._layers.get(layer)
            if known is not None and not isinstance(known, _pool_class(product)):
                raise RefusedReplyError(f"{layer}: factored and dense products in one run")
            if self.settings.anchor == "mean" and _own_update(product) is None:
                raise RefusedReplyError(f"{layer}: the anchor 'mean' needs the update itself")
        largest = max(1.0, self._weight(statistics)) * _largest(statistics)
        if not largest < LIMIT:
            raise RefusedReplyError(
                f"{self.group.name}: {site} sent numbers up to {largest:.3g} once weighted, too "
                f"large to sum exactly; every normalization but 'none' keeps them small"
            )

    def _pool_of(self, layer: str, product: Product) -> _LowRankPool | _DensePool:
        d_out = next(shape.d_out for shape in self.group.layers if shape.name == layer)
        return self._layers.setdefault(layer, _pool_class(product)((d_out, self.group.d_in)))


@dataclass(frozen=True)
class _Solved:
    update: Update
    misfit: float  # tr[ΔW_M S ΔW_Mᵀ] - 2 tr[ΔW_M Rᵀ]
    compression_error: float


class _LowRankPool:
    """Factors of one layer by site; their merge is a LoRA of rank ``Σ r_i``."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._parts: dict[str, tuple[float, LowRankProduct]] = {}

    def add(self, site: str, weight: float, product: Product) -> None:
        assert isinstance(product, LowRankProduct)
        self._parts[site] = (weight, product)

    def solve(
        self, system: RegularizedGram, anchored_to: int | None, settings: MergeSettings
    ) -> _Solved:
        parts = [self._parts[site] for site in sorted(self._parts)]
        left = torch.cat([product.left.double() for _, product in parts], dim=1)
        moments = torch.cat([weight * product.right.double() for weight, product in parts])
        anchor = torch.zeros_like(moments)
        if anchored_to:
            factors = torch.cat([p.factor.double() for _, p in parts if p.factor is not None])
            anchor = factors / anchored_to
        right = _solution(system, moments, anchor, left, settings)
        left, right, error = _maybe_compress(left, right, system.gram, settings.rank)
        inner = left.T @ left
        quadratic = (inner * (right @ system.gram @ right.T)).sum()
        whole = torch.cat([product.left.double() for _, product in parts], dim=1)
        linear = ((left.T @ whole) * (right @ moments.T)).sum()
        update = LowRankUpdate(left.float(), right.float())
        return _Solved(update, float(quadratic - 2 * linear), error)


class _DensePool:
    """The sum of one layer's dense products, and of the updates where the anchor needs them."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._moments = ExactSum(shape)
        self._updates = ExactSum(shape)

    def add(self, site: str, weight: float, product: Product) -> None:
        assert isinstance(product, DenseProduct)
        self._moments.add(weight * product.product.double())
        if product.update is not None:
            self._updates.add(product.update.double())

    def solve(
        self, system: RegularizedGram, anchored_to: int | None, settings: MergeSettings
    ) -> _Solved:
        moments = self._moments.total()
        anchor = torch.zeros_like(moments)
        if anchored_to:
            anchor = self._updates.total() / anchored_to
        merged = _solution(system, moments, anchor, None, settings)
        update: Update = DenseUpdate(merged.float())
        error = 0.0
        if settings.rank:
            eye = torch.eye(merged.shape[1], dtype=merged.dtype)
            left, right, error = compress(merged, eye, system.gram, settings.rank)
            update = LowRankUpdate(left.float(), right.float())
            merged = left @ right
        quadratic = (merged @ system.gram * merged).sum()
        linear = (merged * moments).sum()
        return _Solved(update, float(quadratic - 2 * linear), error)


def _solution(
    system: RegularizedGram,
    moments: Tensor,
    anchor: Tensor,
    left: Tensor | None,
    settings: MergeSettings,
) -> Tensor:
    """``(R + λ ΔW_anchor) (S + λI)⁻¹``, or as near as the iterations come, without ``left``."""
    target = moments + system.ridge * anchor
    if settings.solver == "exact":
        return system.solve(target)
    return system.approach(target, anchor, left, settings.iterations)


def _pool_class(product: Product) -> type[_LowRankPool] | type[_DensePool]:
    return _LowRankPool if isinstance(product, LowRankProduct) else _DensePool


def _largest(statistics: GroupStatistics) -> float:
    """The largest magnitude of anything that goes into an :class:`ExactSum` unweighted."""
    products = statistics.products.values()
    dense = [t for p in products if isinstance(p, DenseProduct) for t in p.tensors().values()]
    magnitudes = [float(t.abs().max()) for t in (statistics.gram, *dense)]
    return max(*magnitudes, 0.0, *(product.energy for product in products))


def _own_update(product: Product) -> Tensor | None:
    return product.factor if isinstance(product, LowRankProduct) else product.update


def _maybe_compress(
    left: Tensor, right: Tensor, gram: Tensor, rank: int
) -> tuple[Tensor, Tensor, float]:
    return compress(left, right, gram, rank) if rank else (left, right, 0.0)


def _check_product(product: Product, shape: tuple[int, int], layer: str) -> None:
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
        if not bool(torch.isfinite(tensor).all()):
            raise RefusedReplyError(f"{layer}: {name} holds a number that is not finite")
    if not 0 <= product.energy < float("inf"):
        raise RefusedReplyError(f"{layer}: energy {product.energy} is no sum of squares")
