"""The sums of one layer over the sites, and their solution: factored for LoRA, else dense."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from layerweld.settings.merge import MergeSettings
from layerweld.statistics.compress import compress
from layerweld.statistics.group import Product
from layerweld.statistics.solve import RegularizedGram
from layerweld.updates.exact_sum import ExactSum
from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update, stack


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

    def solution(self, sums: Sums) -> Update:
        """``(R + λ ΔW_anchor) (S + λI)⁻¹``, or as near as the iterations come; in float64."""
        target = sums.moments.map_rows(lambda rows: rows + self.system.ridge * sums.anchor)
        if not self.iterations:
            return target.map_rows(self.system.solve)
        metric, steps = target.metric, self.iterations
        return target.map_rows(lambda rows: self.system.approach(rows, sums.anchor, metric, steps))

    def misfit(self, merged: Update, sums: Sums) -> float:
        """``tr[ΔW_M (S + Σ ω_i ε_i I) ΔW_Mᵀ] - 2 tr[ΔW_M Rᵀ]``."""
        images = merged.map_rows(lambda rows: rows @ self.system.gram + self.silent * rows)
        return images.inner(merged) - 2 * merged.inner(sums.moments)


@dataclass(frozen=True)
class Sums:
    """One layer's sums over the sites, float64.

    Attributes:
        moments: ``R``.
        anchor: the rows of ``ΔW_anchor``, which has the left factor of ``R``; zero for the base.
    """

    moments: Update
    anchor: Tensor


@dataclass(frozen=True)
class SolvedLayer:
    """One layer's merge.

    Attributes:
        update: float32.
        misfit: of :meth:`Equations.misfit`.
        compression_error: relative, in the metric of S; 0 where nothing was compressed.
    """

    update: Update
    misfit: float
    compression_error: float


class LayerPool(ABC):
    """What the sites sent for one layer, to be added up under weights that come later."""

    is_low_rank: ClassVar[bool]
    """Whether the products in it have factors, as all of one layer have or none."""

    def __init__(self) -> None:
        self._sites: set[str] = set()

    def add(self, site: str, weight: float, product: Product) -> None:
        """Add one site's product."""
        self._sites.add(site)
        self._add(site, weight, product)

    @abstractmethod
    def _add(self, site: str, weight: float, product: Product) -> None: ...

    def has_any(self, scales: Mapping[str, float]) -> bool:
        """Whether a site is left under these scales."""
        return any(scales.get(site, 1.0) > 0 for site in self._sites)

    @abstractmethod
    def sums(self, equations: Equations) -> Sums:
        """Over the sites that are left."""

    def update(self, equations: Equations) -> Update:
        """The merged layer alone, whatever rank the settings compress to."""
        return equations.solution(self.sums(equations)).float32()

    def solve(self, equations: Equations) -> SolvedLayer:
        """The merged layer, and how well it fits."""
        sums, error = self.sums(equations), 0.0
        merged, rank = equations.solution(sums), equations.settings.rank
        if rank:
            merged, error = compress(merged.factored(), equations.system.gram, rank)
        return SolvedLayer(merged.float32(), equations.misfit(merged, sums), error)


class LowRankPool(LayerPool):
    """Factors of one layer by site; their merge is a LoRA of rank ``Σ r_i``."""

    is_low_rank = True

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[str, tuple[float, Product]] = {}

    def _add(self, site: str, weight: float, product: Product) -> None:
        self._parts[site] = (weight, product)

    def sums(self, equations: Equations) -> Sums:
        """All left factors, in the order of the sites' names, and the right ones behind them."""
        parts = self._weighted(equations.scales)
        moments = stack([_weighted_moments(weight, product) for weight, product in parts])
        if not equations.anchored:
            return Sums(moments, torch.zeros_like(moments.right))
        own = [product.own.double() for _, product in parts if product.own is not None]
        return Sums(moments, torch.cat(own) / equations.sites)

    def _weighted(self, scales: Mapping[str, float]) -> list[tuple[float, Product]]:
        """The sites that are left, in the order of their names."""
        scaled = {site: scales.get(site, 1.0) for site in sorted(self._parts)}
        return [
            (self._parts[site][0] * scale, self._parts[site][1])
            for site, scale in scaled.items()
            if scale > 0
        ]


class DensePool(LayerPool):
    """The sum of one layer's dense products, and of the updates where the anchor needs them.

    Args:
        shape: of the layer.
        keeps: whether the products are kept as well, since sites may have to be taken off again.
    """

    is_low_rank = False

    def __init__(self, shape: tuple[int, int], keeps: bool) -> None:
        super().__init__()
        self._moments = ExactSum(shape)
        self._updates = ExactSum(shape)
        self._keeps = keeps
        self._parts: dict[str, tuple[float, Product]] = {}

    def _add(self, site: str, weight: float, product: Product) -> None:
        self._moments.add(weight * product.moments.dense().double())
        if product.update:
            self._updates.add(product.update.dense().double())
        if self._keeps:
            self._parts[site] = (weight, product)

    def sums(self, equations: Equations) -> Sums:
        """``R`` and the anchor, without what the scales take off."""
        moments, updates = self._moments.total(), self._updates.total()
        for site, scale in sorted(equations.scales.items()):
            if site in self._parts and scale < 1:
                weight, product = self._parts[site]
                moments = moments - (1 - scale) * weight * product.moments.dense().double()
                if product.update and scale == 0:
                    updates = updates - product.update.dense().double()
        anchor = updates / equations.sites if equations.anchored else torch.zeros_like(moments)
        return Sums(DenseUpdate(moments), anchor)


def _weighted_moments(weight: float, product: Product) -> LowRankUpdate:
    return product.moments.factored().float64().map_rows(lambda rows: weight * rows)
