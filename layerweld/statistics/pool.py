"""Add up one layer group's statistics over the sites as they arrive, and solve for the merge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from layerweld.errors import RefusedReplyError, UnusableMergeError
from layerweld.plan import LayerGroup
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.admission import Admitted, admit
from layerweld.statistics.gram import shrink
from layerweld.statistics.group import GroupStatistics, Product
from layerweld.statistics.influence import agreement, capped_scales, relative_shift
from layerweld.statistics.layer_pools import DensePool, Equations, LayerPool, LowRankPool
from layerweld.statistics.solve import regularize
from layerweld.updates.bounds import LARGEST_WEIGHT, out_of_bounds
from layerweld.updates.exact_sum import ExactSum
from layerweld.updates.proportion import capped_weights, refuse_out_of_proportion
from layerweld.updates.update import Update

_ROUNDING = 1e-6
"""Of a sum of squares over the energy: more than this below 0 is no rounding."""


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
            ``Σ ω_i tr[(ΔW_M - ΔW_i) (G_i + ε_i I) (…)ᵀ] / Σ ω_i tr[ΔW_i (G_i + ε_i I) ΔW_iᵀ]``,
            with the ``ΔW_i`` that the products stand for (ε:
            :data:`layerweld.statistics.checks.SILENT`).
        compression_error: relative, in the metric of S, of the group's worst layer.
        influence: by site, how far it moves the merge of the others, relative and in the metric
            of S; empty if nobody asked, or there is one site only.
        agreement: by site, the cosine on its own tokens between its update and the merge of the
            others, from -1 to 1; empty as ``influence``.
        capped: by site, the factor that took its weight down; sites within the bounds are absent.
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
    agreement: Mapping[str, float]
    capped: Mapping[str, float]


class GroupPool:
    """``S = Σ ω_i G_i`` and ``R = Σ ω_i ΔW_i G_i`` of one layer group.

    A reply goes one way: :meth:`check` makes an :class:`Admitted` of it, :meth:`fold` adds that,
    and :meth:`solve` takes what was added. Replies are added as they come. The sums are exact
    (:class:`ExactSum`) and factors are stacked in the order of the sites' names, so the solution
    has the same bits in whatever order the sites reply. Where the settings cap a site's share or
    ask for its influence, its statistics are kept until the group is solved, to be taken off the
    sums again; else they are forgotten.

    What can buy a site influence: no number that it claims, for nothing is computed from any. ω is
    computed here, from G. ``token`` and ``trace`` fix tr G = 1 and so bound ω ≤ (d_in - 1) / 2,
    ``feature`` bounds ω ≤ d_in (d_in - 1) / 2: a site that sends G with all entries equal gets
    that much, and ``max_weight`` takes it down to some times the median site's. With ``none`` c
    times the activations are c⁴ times the weight, which the same cap bounds. ``max_share`` caps
    a site's share as well; ``importance = "uniform"`` leaves only G itself. A large ΔW moves the
    merge in proportion, in the metric of S by no more than the root of ω times its energy; beyond
    ``max_size`` times the median of the others' it ends the group by name.

    Args:
        group: the layer group.
        settings: normalisation, importance, shrinkage, ridge, anchor, rank, bounds and influence.
        iterations: steps of conjugate gradients from the anchor; 0 solves exactly.
    """

    def __init__(self, group: LayerGroup, settings: MergeSettings, iterations: int = 0) -> None:
        self.group = group
        self.settings = settings
        self.iterations = iterations
        self._gram = ExactSum((group.d_in, group.d_in))
        self._layers: dict[str, LayerPool] = {}
        self._admitted: dict[str, Admitted] = {}
        self._keeps = settings.influence or settings.max_share < 1 or settings.max_weight > 0

    def fold(self, admitted: Admitted) -> None:
        """Add statistics that :meth:`check` has passed."""
        statistics = admitted.statistics
        self._gram.add(admitted.weight * statistics.gram.double())
        for layer, product in statistics.products.items():
            self._pool_of(layer, product).add(admitted.site, admitted.weight, product)
        self._admitted[admitted.site] = admitted if self._keeps else admitted.forgotten()

    def check(self, site: str, statistics: GroupStatistics) -> Admitted:
        """Refuse statistics that honest data cannot give, or that nobody asked for.

        Raises:
            RefusedReplyError: as :mod:`layerweld.statistics.admission` says, a second reply of the
                same site, or products of another form than those of the other sites.
        """
        if site in self._admitted:
            raise RefusedReplyError(f"{site} replied for {self.group.name} twice")
        admitted = admit(site, statistics, self.group, self.settings)
        for layer, product in statistics.products.items():
            known = self._layers.get(layer)
            if known and known.is_low_rank != product.moments.is_low_rank:
                raise RefusedReplyError(f"{layer}: factored and dense products in one run")
        return admitted

    def require_proportion(self) -> None:
        """Nobody's update is many times as large as the others'.

        Raises:
            OutOfProportionError: one is; solving would let it decide the merge.
        """
        magnitudes = {
            site: one.magnitude for site, one in self._admitted.items() if one.magnitude.square > 0
        }
        if len(magnitudes) == 2 < len(self._admitted):
            return  # of two sites among many nobody can say which one is wrong: influence shows it
        name, most = self.group.name, self.settings.max_size
        energies = {site: one.energy**0.5 for site, one in magnitudes.items()}
        refuse_out_of_proportion(energies, most, f"what its update of {name} does to its tokens")
        sizes = {site: one.square**0.5 for site, one in magnitudes.items()}
        refuse_out_of_proportion(sizes, most, f"the update behind its products of {name}")

    def solve(self) -> GroupSolution:
        """The merged updates from what was added.

        Raises:
            OutOfProportionError: as :meth:`require_proportion`.
            UnusableMergeError: numbers came out that no model can use.
        """
        self.require_proportion()
        scales, total = self._scales(), self._gram.total()
        equations = self._equations(total, scales)
        solved = {name: pool.solve(equations) for name, pool in self._pools_under(scales)}
        updates = {layer: one.update for layer, one in solved.items()}
        self._require_usable(updates)
        influence, agreements = self._without_each(total, equations)
        return GroupSolution(
            group=self.group.name,
            updates=updates,
            importance=self._weights(scales),
            tokens={site: one.statistics.num_tokens for site, one in self._sorted()},
            condition=equations.system.condition,
            ridge=equations.system.ridge,
            residual=self._residual(sum(one.misfit for one in solved.values()), scales),
            compression_error=max((one.compression_error for one in solved.values()), default=0.0),
            influence=influence,
            agreement=agreements,
            capped=scales,
        )

    def _sorted(self) -> list[tuple[str, Admitted]]:
        """The sites in the order of their names."""
        return sorted(self._admitted.items())

    def _weights(self, scales: Mapping[str, float]) -> dict[str, float]:
        """ω by site, as it counts."""
        return {site: one.weight * scales.get(site, 1.0) for site, one in self._sorted()}

    def _residual(self, misfit: float, scales: Mapping[str, float]) -> float:
        """What is left of the sites' energy.

        Raises:
            UnusableMergeError: less than nothing, which no sum of squares is.
        """
        weights = self._weights(scales)
        energy = math.fsum(w * self._admitted[site].magnitude.energy for site, w in weights.items())
        if energy == 0:
            return 0.0
        residual = (energy + misfit) / energy
        if not residual > -_ROUNDING:
            raise UnusableMergeError(
                f"{self.group.name}: the merge is too badly conditioned for float64: its residual "
                f"came out as {residual:.3g}, and it is a sum of squares"
            )
        return max(0.0, residual)

    def _require_usable(self, updates: Mapping[str, Update]) -> None:
        """No number is beyond a model's; if one is, a site out of proportion is to blame.

        Raises:
            OutOfProportionError: factors of a site are many times as large as the others'.
            UnusableMergeError: a number is beyond a model's all the same.
        """
        layer = out_of_bounds(updates)
        if layer:
            bounds = {site: one.magnitude.bound for site, one in self._sorted()}
            what = f"the product of the factors that it sent for {self.group.name}"
            refuse_out_of_proportion(bounds, self.settings.max_size, what)
            raise UnusableMergeError(
                f"{layer} came out with numbers that are not finite, or beyond "
                f"{LARGEST_WEIGHT:.0f}: no model can use it. The largest factors in it are those "
                f"of {max(bounds, key=bounds.__getitem__)}"
            )

    def _scales(self) -> dict[str, float]:
        """What the caps take each site's weight down to; empty where they take nothing."""
        masses = {site: one.mass for site, one in self._sorted()}
        most, share = self.settings.max_weight, self.settings.max_share
        scales = capped_weights(masses, most) if most else {}
        if share < 1:
            left = {site: mass * scales.get(site, 1.0) for site, mass in masses.items()}
            shares = capped_scales(left, share)
            scales = {site: scales.get(site, 1.0) * factor for site, factor in shares.items()}
        return {site: scale for site, scale in scales.items() if scale < 1}

    def _equations(self, total: Tensor, scales: Mapping[str, float]) -> Equations:
        """With each site's weight multiplied by its scale (1 if absent); 0 leaves it out.

        Args:
            total: S with every weight as it is.
            scales: by site.
        """
        off = (  # what the scales take off, site by site in their order
            (1 - scale) * one.weight * one.statistics.gram.double()
            for site, one in self._sorted()
            if (scale := scales.get(site, 1.0)) < 1
        )
        gram = shrink(total - sum(off), self.settings.shrinkage)
        system = regularize(gram, self.settings.ridge)
        weights = self._weights(scales)
        silent = math.fsum(w * self._admitted[site].silent for site, w in weights.items())
        sites = sum(1 for site in weights if scales.get(site, 1.0) > 0)
        return Equations(system, sites, self.settings, scales, silent, self.iterations)

    def _pools_under(self, scales: Mapping[str, float]) -> Iterator[tuple[str, LayerPool]]:
        """The layers that a site is left in, in the group's order."""
        for shape in self.group.layers:
            pool = self._layers.get(shape.name)
            if pool is not None and pool.has_any(scales):
                yield shape.name, pool

    def _without_each(
        self, total: Tensor, equations: Equations
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Influence and agreement of each site: the group is solved again without it."""
        shifts: dict[str, float] = {}
        agreements: dict[str, float] = {}
        if not self.settings.influence or len(self._admitted) < 2:
            return shifts, agreements
        merged = self._updates(equations)
        for site, one in self._sorted():
            without = self._updates(self._equations(total, {**equations.scales, site: 0.0}))
            shifts[site] = relative_shift(merged, without, equations.system.gram)
            gram = shrink(one.statistics.gram.double(), self.settings.shrinkage)
            agreements[site] = agreement(
                without, one.statistics.products, gram, one.magnitude.energy, one.silent
            )
        return shifts, agreements

    def _updates(self, equations: Equations) -> dict[str, Update]:
        return {name: pool.update(equations) for name, pool in self._pools_under(equations.scales)}

    def _pool_of(self, layer: str, product: Product) -> LayerPool:
        if layer not in self._layers:
            low_rank, shape = product.moments.is_low_rank, product.moments.shape
            self._layers[layer] = LowRankPool() if low_rank else DensePool(shape, self._keeps)
        return self._layers[layer]
