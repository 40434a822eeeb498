"""How much one site decides: a cap on its weight, and what the merge would be without it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from torch import Tensor

from layerweld.statistics.gram import with_diagonal
from layerweld.statistics.group import Product
from layerweld.updates.update import Update

OUTLIER = 3.0
"""A site whose removal moves a group more than this many times the median site's is flagged."""
_COSINE = 1.001
OPPOSITE = -0.5
"""A site whose update has a cosine below this with the merge of the others is flagged."""


def capped_scales(masses: Mapping[str, float], share: float) -> dict[str, float]:
    """Factors in (0, 1] that leave no site more than a share of the sum of what is left.

    Where ``share`` is below 1 / N that is impossible, and all sites end up equal.

    Args:
        masses: what each site brings, ≥ 0.
        share: in (0, 1]; 1 changes nothing.
    """
    ranked = sorted(masses.items(), key=lambda item: (-item[1], item[0]))
    limit = ranked[-1][1]
    for above in range(len(ranked)):
        if share * above >= 1:
            break
        rest = sum(mass for _, mass in ranked[above:])
        if ranked[above][1] * (1 - share * above) <= share * rest:
            limit = share * rest / (1 - share * above)
            break
    return {site: min(1.0, limit / mass) if mass > 0 else 1.0 for site, mass in masses.items()}


def relative_shift(
    merged: Mapping[str, Update], without: Mapping[str, Update], gram: Tensor
) -> float:
    """``‖(ΔW_M - ΔW_without) S^½‖ / ‖ΔW_without S^½‖``, Frobenius, over all layers of a group.

    Relative to what the others make alone: a site whose update is a hundred times theirs scores
    about 100 / (N - 1), where relative to the whole merge it would score 1, and the others 1 / N.

    Args:
        merged: the merged updates, by layer.
        without: the same without one site; a layer that only that site changed is absent.
        gram: ``S``, ``(d_in, d_in)`` float64.

    Returns:
        0 for none; 1 where the others make nothing at all.
    """
    shifts = [u - without[name] if name in without else u for name, u in merged.items()]
    moved = sum(_square(shift, gram) for shift in shifts)
    others = sum(_square(update, gram) for update in without.values())
    if others == 0:
        return 1.0 if moved > 0 else 0.0
    return float((moved / others) ** 0.5)


def outliers(influence: Mapping[str, float]) -> tuple[str, ...]:
    """Sites whose removal shifts the merge by more than :data:`OUTLIER` times the median site's.

    Of two sites neither is an outlier.
    """
    if len(influence) < 3:
        return ()
    usual = median(influence.values())
    return tuple(site for site, shift in sorted(influence.items()) if shift > OUTLIER * usual)


def agreement(
    others: Mapping[str, Update],
    products: Mapping[str, Product],
    gram: Tensor,
    energy: float,
    silent: float,
) -> float:
    """The cosine, on one site's tokens, between its update and what the others merge to.

    ``Σ tr[ΔW_others P_iᵀ] / sqrt(E_i Σ tr[ΔW_others (G_i + ε_i I) ΔW_othersᵀ])``, over a group's
    layers. Tasks that have nothing to do with each other come out near 0; a site that sends its
    update with the sign turned, among sites that agree, near -1.

    Args:
        others: the merge without the site, by layer.
        products: of the site.
        gram: ``G_i``, shrunk, ``(d_in, d_in)`` float64.
        energy: ``E_i`` of the products, :class:`layerweld.statistics.checks.Magnitude`.
        silent: ``ε_i``.

    Returns:
        From -1 to 1, but for rounding; 0 where one of the two does nothing.
    """
    common = sum(p.moments.inner(others[k]) for k, p in products.items() if k in others)
    metric = with_diagonal(gram, silent)
    theirs = sum(_square(update, metric) for update in others.values())
    scale = energy**0.5 * theirs**0.5
    if not abs(common) <= _COSINE * scale:
        return 0.0  # beyond what Cauchy and Schwarz allow there is rounding, and nothing else
    return common / scale if scale > 0 else 0.0


def opposed(agreements: Mapping[str, float]) -> tuple[str, ...]:
    """Sites whose update does the opposite of what the others merge to, of at least three."""
    if len(agreements) < 3:
        return ()
    return tuple(site for site, cosine in sorted(agreements.items()) if cosine < OPPOSITE)


def _square(update: Update, gram: Tensor) -> float:
    """``tr[ΔW S ΔWᵀ]``; never below 0."""
    return max(0.0, (update.float64() @ gram).inner(update))
