"""The sums of one layer over the sites, and their solution: factored for LoRA, else dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layerweld.settings.merge import MergeSettings
from layerweld.statistics.compress import compress
from layerweld.statistics.group import DenseProduct, LowRankProduct, Product
from layerweld.statistics.solve import RegularizedGram
from layerweld.updates.exact_sum import ExactSum
from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update


@dataclass(frozen=True)
class Equations:
    """What all layers of a group are solved with.

    Attributes:
        system: ``S + λI``.
        sites: how many sites are in it.
        settings: anchor and rank.
        scales: factor on each site's weight; 1 if absent, 0 leaves the site out.
        silent: ``Σ ω_i ε_i``. What the products say is measured with ``S + Σ ω_i ε_i I``: in it
            every site's misfit is a sum of squares, whatever the site has sent.
        iterations: steps of conjugate gradients from the anchor; 0 solves exactly.
    """

    system: RegularizedGram
    sites: int
    settings: MergeSettings
    scales: Mapping[str, float]
    silent: float = 0.0
    iterations: int = 0

    @property
    def anchored(self) -> bool:
        """Whether the ridge pulls to the mean of the sites' updates, and not to the base model."""
        return self.settings.anchor == "mean"

    def solution(self, moments: Tensor, anchor: Tensor, left: Tensor | None) -> Tensor:
        """``(R + λ ΔW_anchor) (S + λI)⁻¹``, or as near as the iterations come, without ``left``."""
        target = moments + self.system.ridge * anchor
        if not self.iterations:
            return self.system.solve(target)
        return self.system.approach(target, anchor, left, self.iterations)


@dataclass(frozen=True)
class SolvedLayer:
    """One layer's merge.

    Attributes:
        update: float32.
        misfit: ``tr[ΔW_M (S + Σ ω_i ε_i I) ΔW_Mᵀ] - 2 tr[ΔW_M Rᵀ]``.
        compression_error: relative, in the metric of S; 0 where nothing was compressed.
    """

    update: Update
    misfit: float
    compression_error: float


class LowRankPool:
    """Factors of one layer by site; their merge is a LoRA of rank ``Σ r_i``."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[float, LowRankProduct]] = {}

    def add(self, site: str, weight: float, product: Product) -> None:
        """Keep one site's factors."""
        assert isinstance(product, LowRankProduct)
        self._parts[site] = (weight, product)

    def has_any(self, scales: Mapping[str, float]) -> bool:
        """Whether a site is left under these scales."""
        return any(scales.get(site, 1.0) > 0 for site in self._parts)

    def update(self, equations: Equations) -> LowRankUpdate:
        """The merged layer alone, whatever rank the settings compress to."""
        whole, moments, anchor = self._sums(equations)
        return LowRankUpdate(whole.float(), equations.solution(moments, anchor, whole).float())

    def solve(self, equations: Equations) -> SolvedLayer:
        """The merged layer, and how well it fits."""
        gram, settings = equations.system.gram, equations.settings
        whole, moments, anchor = self._sums(equations)
        left, right, error = whole, equations.solution(moments, anchor, whole), 0.0
        if settings.rank:
            left, right, error = compress(left, right, gram, settings.rank)
        images = right @ gram + equations.silent * right
        quadratic = (left.T @ left * (images @ right.T)).sum()
        linear = ((left.T @ whole) * (right @ moments.T)).sum()
        update = LowRankUpdate(left.float(), right.float())
        return SolvedLayer(update, float(quadratic - 2 * linear), error)

    def _sums(self, equations: Equations) -> tuple[Tensor, Tensor, Tensor]:
        """All left factors, and with them taken out ``R`` and the anchor."""
        parts = self._weighted(equations.scales)
        whole = torch.cat([product.left.double() for _, product in parts], dim=1)
        moments = torch.cat([weight * product.right.double() for weight, product in parts])
        if not equations.anchored:
            return whole, moments, torch.zeros_like(moments)
        factors = torch.cat([p.factor.double() for _, p in parts if p.factor is not None])
        return whole, moments, factors / equations.sites

    def _weighted(self, scales: Mapping[str, float]) -> list[tuple[float, LowRankProduct]]:
        """The sites that are left, in the order of their names."""
        scaled = {site: scales.get(site, 1.0) for site in sorted(self._parts)}
        return [
            (self._parts[site][0] * scale, self._parts[site][1])
            for site, scale in scaled.items()
            if scale > 0
        ]


class DensePool:
    """The sum of one layer's dense products, and of the updates where the anchor needs them.

    Args:
        shape: of the layer.
        keeps: whether the products are kept as well, since sites may have to be taken off again.
    """

    def __init__(self, shape: tuple[int, int], *, keeps: bool) -> None:
        self._moments = ExactSum(shape)
        self._updates = ExactSum(shape)
        self._keeps = keeps
        self._sites: set[str] = set()
        self._parts: dict[str, tuple[float, DenseProduct]] = {}

    def add(self, site: str, weight: float, product: Product) -> None:
        """Add one site's product."""
        assert isinstance(product, DenseProduct)
        self._moments.add(weight * product.product.double())
        if product.update is not None:
            self._updates.add(product.update.double())
        self._sites.add(site)
        if self._keeps:
            self._parts[site] = (weight, product)

    def has_any(self, scales: Mapping[str, float]) -> bool:
        """Whether a site is left under these scales."""
        return any(scales.get(site, 1.0) > 0 for site in self._sites)

    def update(self, equations: Equations) -> DenseUpdate:
        """The merged layer alone, whatever rank the settings compress to."""
        moments, anchor = self._sums(equations)
        return DenseUpdate(equations.solution(moments, anchor, None).float())

    def solve(self, equations: Equations) -> SolvedLayer:
        """The merged layer, and how well it fits."""
        gram, settings = equations.system.gram, equations.settings
        moments, anchor = self._sums(equations)
        merged = equations.solution(moments, anchor, None)
        update: Update = DenseUpdate(merged.float())
        error = 0.0
        if settings.rank:
            eye = torch.eye(merged.shape[1], dtype=merged.dtype)
            left, right, error = compress(merged, eye, gram, settings.rank)
            update = LowRankUpdate(left.float(), right.float())
            merged = left @ right
        quadratic = ((merged @ gram + equations.silent * merged) * merged).sum()
        linear = (merged * moments).sum()
        return SolvedLayer(update, float(quadratic - 2 * linear), error)

    def _sums(self, equations: Equations) -> tuple[Tensor, Tensor]:
        """``R`` and the anchor, without what the scales take off."""
        moments, updates = self._moments.total(), self._updates.total()
        for site, scale in sorted(equations.scales.items()):
            if site in self._parts and scale < 1:
                weight, product = self._parts[site]
                moments = moments - (1 - scale) * weight * product.product.double()
                if product.update is not None and scale == 0:
                    updates = updates - product.update.double()
        return moments, updates / equations.sites if equations.anchored else torch.zeros_like(
            moments
        )


LayerPool = LowRankPool | DensePool


def new_pool(product: Product, shape: tuple[int, int], *, keeps: bool) -> LayerPool:
    """An empty pool for products of this form."""
    return LowRankPool() if isinstance(product, LowRankProduct) else DensePool(shape, keeps=keeps)


def fits(pool: LayerPool, product: Product) -> bool:
    """Whether a product has the form of those in the pool."""
    return isinstance(pool, LowRankPool) == isinstance(product, LowRankProduct)
