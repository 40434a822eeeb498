"""Methods of one round: ask for the sites' updates, and merge them as the method says."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from layerweld.merging.lines import Lines
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates
from layerweld.plan import MergePlan
from layerweld.updates.shared_factor import require_one_factor
from strategies.cohort import Cohort
from strategies.rounds import Outcome, Round, Rounds
from strategies.site_updates import AdmittedUpdates, OfOneSite, side_by_side, updates_round


class UpdateMerging(Rounds):
    """Ask every site for its updates once, and apply one method to all of them.

    Nothing is kept: a resumed run asks again.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        method: what merges.
        other_params: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
        lines: scales the merge by depth at the end, if given, in place of the method's own λ.
        rank: that the merge is cut to; 0 for none.
    """

    count = 1

    def __init__(
        self,
        plan: MergePlan,
        cohort: Cohort,
        method: MergeMethod,
        other_params: Mapping[str, Tensor],
        lines: Lines | None = None,
        rank: int = 0,
    ) -> None:
        self._plan = plan
        self._cohort = cohort
        self._method = method.unscaled() if lines else method
        self._other_params = other_params
        self._lines = lines
        self._rank = rank
        self._merge = Merge({})

    def round_at(self, index: int) -> Round[AdmittedUpdates]:
        """The one round there is."""
        factors_too = self._method.averages_factors
        return updates_round(self._plan, self._cohort, self._use, factors_too=factors_too)

    def outcome(self) -> Outcome:
        """What the method made of the updates."""
        return Outcome.of(self._merge, self._other_params, self._rank)

    def _use(self, by_site: Mapping[str, OfOneSite]) -> None:
        if self._method.shares_factor:
            require_one_factor(by_site)
        sites = side_by_side(self._plan, self._cohort, by_site)
        scale = self._method.other_params_scale(len(sites.sites))
        self._other_params = {name: values * scale for name, values in self._other_params.items()}
        self._merge = self._method.merge(sites)
        if self._lines:
            self._merge = self._scaled_by_depth(self._lines, self._merge, sites)

    def _scaled_by_depth(self, lines: Lines, merged: Merge, sites: SiteUpdates) -> Merge:
        start, blocks = lines.start(merged, sites), self._plan.blocks
        block_of = {s.name: group.block for group in self._plan.groups for s in group.layers}
        self._other_params = lines.scaled_other_params(self._other_params, start, blocks)
        return lines.scaled(merged, start, block_of, len(blocks))
