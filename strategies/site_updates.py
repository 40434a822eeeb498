"""The round in which every site sends its updates themselves, checked and laid side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class AdmittedUpdates:
    """One site's updates as training can leave them, and how large each is.

    Attributes:
        updates: ``ΔW`` by layer.
        sizes: of every update, by layer.
        factor_sizes: of every factor of a LoRA, by name.
    """

    updates: OfOneSite
    sizes: Mapping[str, Part]
    factor_sizes: Mapping[str, Part]


def updates_round(
    plan: MergePlan,
    cohort: Cohort,
    use: Callable[[Mapping[str, OfOneSite]], Kept | None],
    *,
    factors_too: bool = False,
) -> Round[AdmittedUpdates]:
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

    def read(site: str, content: RecordDict) -> AdmittedUpdates:
        updates = decode_updates(content, plan, cohort.site_infos[site].rank_of)
        _require_bounded(updates)
        require_claimed_factors(cohort.site_infos[site].factors, updates)
        sizes = {layer: Part(u.norm, u.shape[0] * u.shape[1]) for layer, u in updates.items()}
        factors = update_tensors(updates) if factors_too else {}
        return AdmittedUpdates(updates, sizes, {k: part_of(one) for k, one in factors.items()})

    def budget(site: str) -> Budget:
        return updates_layout(plan, cohort.site_infos[site].rank_of).budget

    def fold(replies: Iterator[tuple[str, AdmittedUpdates]]) -> Kept | None:
        admitted = dict(replies)
        cohort.require_proportion({s: one.sizes for s, one in admitted.items()}, "its update")
        factors = {s: one.factor_sizes for s, one in admitted.items()}
        cohort.require_proportion(factors, "its factor")
        return use({site: one.updates for site, one in admitted.items()})

    return Round(Request(UPDATES, "updates", lambda _site: asked, read, budget), fold)


def side_by_side(plan: MergePlan, cohort: Cohort, by_site: Mapping[str, OfOneSite]) -> SiteUpdates:
    """Layers in the plan's order, and in each the sites in the order of their names."""
    names = sorted(by_site)
    layers = {
        layer: {site: by_site[site][layer] for site in names if layer in by_site[site]}
        for layer in plan.layer_names
    }
    return SiteUpdates(
        {site: cohort.site_infos[site].samples for site in names},
        {layer: updates for layer, updates in layers.items() if updates},
    )


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
