"""The round in which every site sends its updates themselves, checked and laid side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from flwr.app import RecordDict

from layerweld.errors import RefusedReplyError
from layerweld.exact_sum import LIMIT
from layerweld.expected import Shapes, update_shapes
from layerweld.merging.one_round import SiteUpdates
from layerweld.plan import MergePlan
from layerweld.transport.layout import Budget
from layerweld.transport.run import encode_run
from layerweld.transport.updates import decode_updates, updates_budget
from layerweld.updates import LowRankUpdate, Update
from strategies.cohort import Cohort
from strategies.round_by_round import Round

OfOneSite = Mapping[str, Update]
"""``ΔW`` by layer."""


def updates_round(
    plan: MergePlan, cohort: Cohort, use: Callable[[Mapping[str, OfOneSite]], None]
) -> Round[OfOneSite]:
    """Ask for the updates.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        use: called with the updates by site, once all that are left have answered.
    """
    asked = encode_run(cohort.run)

    def shapes(site: str) -> Shapes:
        introduction = cohort.introductions[site]
        return update_shapes(plan, dict(zip(introduction.layers, introduction.ranks, strict=True)))

    def read(site: str, content: RecordDict) -> OfOneSite:
        updates = decode_updates(content, shapes(site))
        _require_bounded(updates)
        return updates

    def budget(site: str) -> Budget:
        return updates_budget(shapes(site))

    def fold(answers: Iterator[tuple[str, OfOneSite]]) -> None:
        use(dict(answers))

    return Round("train.adapter", "updates", lambda _site: asked, read, budget, fold)


def side_by_side(plan: MergePlan, cohort: Cohort, by_site: Mapping[str, OfOneSite]) -> SiteUpdates:
    """Layers in the plan's order, and in each the sites in the order of their names."""
    names = sorted(by_site)
    layers = {
        layer: {site: by_site[site][layer] for site in names if layer in by_site[site]}
        for layer in plan.layer_names
    }
    return SiteUpdates(
        {site: cohort.introductions[site].rows for site in names},
        {layer: updates for layer, updates in layers.items() if updates},
    )


def _require_bounded(updates: OfOneSite) -> None:
    for layer, update in updates.items():
        if not _bound(update) < LIMIT:  # False for NaN too
            raise RefusedReplyError(f"the update of {layer!r} is not finite, or beyond 2⁴²")


def _bound(update: Update) -> float:
    """No entry of the update is larger."""
    if isinstance(update, LowRankUpdate):
        return float(update.left.abs().max()) * float(update.right.abs().max()) * update.rank
    return float(update.weight.abs().max())
