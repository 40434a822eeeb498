"""What of a site's statistics of one layer group may be added, and what they count for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from layerweld.errors import RefusedReplyError
from layerweld.plan import LayerGroup
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.checks import GramFactor, Magnitude, check_product, check_statistics
from layerweld.statistics.gram import off_diagonal_importance, shrink
from layerweld.statistics.group import GroupStatistics, Product
from layerweld.updates.bounds import LARGEST_WEIGHT, cancels, largest, largest_of_update
from layerweld.updates.exact_sum import FLOOR, LIMIT


@dataclass(frozen=True)
class Admitted:
    """Statistics that honest data can give, and what the server computed from them.

    Attributes:
        site: whose.
        statistics: as they came.
        weight: ω, from the Gram matrix.
        mass: ``ω tr G``, what the site brings to S.
        silent: ε of :class:`layerweld.statistics.checks.GramFactor`.
        magnitude: of all products together.
    """

    site: str
    statistics: GroupStatistics
    weight: float
    mass: float
    silent: float
    magnitude: Magnitude

    def forgotten(self) -> Admitted:
        """Without the matrices, which were added and are needed no more."""
        empty = self.statistics.gram.new_empty(0, 0)
        return replace(self, statistics=replace(self.statistics, gram=empty, products={}))


def admit(
    site: str, statistics: GroupStatistics, group: LayerGroup, settings: MergeSettings
) -> Admitted:
    """Refuse statistics that honest data cannot give, or that nobody asked for.

    Args:
        site: whose they are.
        statistics: of one group.
        group: that was asked about.
        settings: of the merge.

    Raises:
        RefusedReplyError: wrong group, shape or form, a broken invariant, a product that only an
            update beyond any model's has, or numbers that the exact sum cannot hold or would lose.
    """
    if statistics.group != group.name:
        raise RefusedReplyError(f"{site} sent {statistics.group!r} where {group.name!r} was asked")
    if statistics.num_tokens < 1:
        raise RefusedReplyError(f"{site} counted {statistics.num_tokens} tokens")
    factor = check_statistics(statistics, group.d_in, settings.normalization)
    gram = statistics.gram.double()
    d_out = {shape.name: shape.d_out for shape in group.layers}
    for layer, product in statistics.products.items():
        if layer not in d_out:
            raise RefusedReplyError(f"{layer!r} is not a layer of {group.name}")
        shape = (d_out[layer], group.d_in)
        check_product(product, gram, shape, settings.shrinkage, layer)
        if settings.anchor == "mean" and product.update is None:
            raise RefusedReplyError(f"{layer}: the anchor 'mean' needs the update itself")
    weight = _weight(statistics, group, settings)
    _check_summable(site, weight, statistics)
    if settings.shrinkage < 1 and statistics.products:
        factor = GramFactor(shrink(gram, settings.shrinkage))
    magnitude = Magnitude()
    for layer, product in statistics.products.items():
        magnitude += _checked_magnitude(factor, product, layer)
    mass = weight * float(gram.trace())
    return Admitted(site, statistics, weight, mass, factor.silent, magnitude)


def _checked_magnitude(factor: GramFactor, product: Product, layer: str) -> Magnitude:
    implied = factor.implied_update(product.moments)
    magnitude = factor.magnitude(product.moments, implied)
    largest_square = max(magnitude.energy, magnitude.square)
    if not magnitude.bound <= LARGEST_WEIGHT or not largest_square < LIMIT:
        raise RefusedReplyError(
            f"{layer}: only an update with numbers up to {magnitude.bound:.3g} has this product "
            f"with the Gram matrix that was sent, and no model's has any beyond "
            f"{LARGEST_WEIGHT:.0f}"
        )
    own = product.update or implied
    if cancels(own):
        raise RefusedReplyError(f"{layer}: its factors cancel; no training leaves such an update")
    if product.update is not None:
        if not largest_of_update(own) <= LARGEST_WEIGHT:
            raise RefusedReplyError(
                f"{layer}: the update that was sent along has numbers beyond {LARGEST_WEIGHT:.0f}, "
                f"and no model's has"
            )
        magnitude = replace(magnitude, square=max(magnitude.square, own.norm**2))
    if factor.carries_silence(product.moments, magnitude):
        raise RefusedReplyError(
            f"{layer}: features that never fire carry a part of the product: no update does that"
        )
    return magnitude


def _weight(statistics: GroupStatistics, group: LayerGroup, settings: MergeSettings) -> float:
    """ω; a single feature has no off-diagonal, and there every site counts alike."""
    uniform = settings.importance == "uniform" or group.d_in == 1
    return 1.0 if uniform else off_diagonal_importance(statistics.gram)


def _check_summable(site: str, weight: float, statistics: GroupStatistics) -> None:
    top = max(1.0, weight) * max(map(largest, statistics.tensors().values()))
    if not top < LIMIT:
        raise RefusedReplyError(
            f"{statistics.group}: {site} sent numbers up to {top:.3g} once weighted, too "
            f"large to sum exactly; every normalization but 'none' keeps them small"
        )
    moment = largest(statistics.gram)
    if weight * moment < FLOOR:
        raise RefusedReplyError(
            f"{statistics.group}: {site} would count for nothing: its weight {weight:.3g} times "
            f"a largest moment of {moment:.3g} is too little to sum exactly; give the site "
            f"other samples, or set `merge.importance` to 'uniform' if the weight is 0 and "
            f"`merge.normalization` to 'token' if the moment is tiny"
        )
