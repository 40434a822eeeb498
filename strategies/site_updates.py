"""The round in which every site sends its updates themselves, checked and laid side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from flwr.app import RecordDict

from layerweld.errors import RefusedReplyError
from layerweld.merging.one_round import SiteUpdates
from layerweld.plan import MergePlan
from layerweld.transport.identity import encode_plain
from layerweld.transport.layout import Budget
from layerweld.transport.updates import UPDATES, decode_updates, updates_layout
from layerweld.updates.bounds import LARGEST_WEIGHT, cancels, out_of_bounds, part_of
from layerweld.updates.named_tensors import update_tensors
from layerweld.updates.proportion import Part
from layerweld.updates.shared_factor import require_claimed_factors
from layerweld.updates.update import Update
from strategies.cohort import Cohort
from strategies.poll import Request
from strategies.rounds import Kept, Round

OfOneSite = Mapping[str, Update]
"""``ΔW`` by layer."""


def updates_round(
    plan: MergePlan,
    cohort: Cohort,
    use: Callable[[Mapping[str, OfOneSite]], Kept | None],
    *,
    factors_too: bool = False,
) -> Round[OfOneSite]:
    """Ask for the updates.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        use: called with the updates by site, once all that are left have replied and none of
            them is out of proportion; returns what is kept of the round.
        factors_too: whether that is asked of the factors of a LoRA as well, and not of their
            product alone.
    """
    asked = encode_plain(UPDATES, cohort.run)

    def read(site: str, content: RecordDict) -> OfOneSite:
        updates = decode_updates(content, plan, cohort.site_infos[site].rank_of)
        _require_bounded(updates)
        require_claimed_factors(cohort.site_infos[site].factors, updates)
        return updates

    def budget(site: str) -> Budget:
        return updates_layout(plan, cohort.site_infos[site].rank_of).budget

    def fold(replies: Iterator[tuple[str, OfOneSite]]) -> Kept | None:
        by_site = dict(replies)
        sizes = {site: _sizes(updates) for site, updates in by_site.items()}
        cohort.require_proportion(sizes, "its update")
        if factors_too:
            cohort.require_proportion(
                {site: _sizes_of_factors(updates) for site, updates in by_site.items()},
                "its factor",
            )
        return use(by_site)

    return Round(Request(UPDATES, "updates", lambda _site: asked, read, budget), fold)


def side_by_side(plan: MergePlan, cohort: Cohort, by_site: Mapping[str, OfOneSite]) -> SiteUpdates:
    """Layers in the plan's order, and in each the sites in the order of their names."""
    samples = {site: cohort.site_infos[site].samples for site in by_site}
    return SiteUpdates.side_by_side(samples, by_site, plan.layer_names)


def _sizes(updates: OfOneSite) -> dict[str, Part]:
    return {layer: Part(u.norm, u.shape[0] * u.shape[1]) for layer, u in updates.items()}


def _sizes_of_factors(updates: OfOneSite) -> dict[str, Part]:
    return {name: part_of(factor) for name, factor in update_tensors(updates).items()}


def _require_bounded(updates: OfOneSite) -> None:
    layer = out_of_bounds(updates)
    if layer:
        raise RefusedReplyError(
            f"the update of {layer!r} has numbers that are not finite, or beyond "
            f"{LARGEST_WEIGHT:.0f}, and no model's has"
        )
    layer = next((name for name, update in updates.items() if cancels(update)), "")
    if layer:
        raise RefusedReplyError(
            f"the factors of the update of {layer!r} cancel; no training leaves such an update"
        )
