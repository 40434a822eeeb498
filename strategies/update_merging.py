"""Methods of one round: ask for the sites' updates, and merge them as the method says."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from layerweld.merging.lines import Lines
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates
from layerweld.plan import MergePlan
from layerweld.updates.shared_factor import require_one_factor
from strategies.cohort import Cohort
from strategies.kept_rounds import Traffic
from strategies.round_by_round import Round
from strategies.site_updates import OfOneSite, side_by_side, updates_round


class UpdateMerging:
    """Ask every site for its updates once, and apply one method to all of them.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        method: what merges.
        remainder: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
        lines: scales the merge by depth at the end, if given, in place of the method's own λ.
    """

    def __init__(
        self,
        plan: MergePlan,
        cohort: Cohort,
        method: MergeMethod,
        remainder: Mapping[str, Tensor],
        lines: Lines | None = None,
    ) -> None:
        self.plan = plan
        self.cohort = cohort
        self.method = method.unscaled() if lines else method
        self.remainder = remainder
        self.lines = lines
        self.merged = Merge({})
        self.traffic = Traffic()
        self.count = 1
        self.played = 0

    def next_round(self) -> Round[OfOneSite]:
        """The one round there is."""
        factors_too = self.method.averages_factors
        return updates_round(self.plan, self.cohort, self._merge, factors_too=factors_too)

    def _merge(self, by_site: Mapping[str, OfOneSite]) -> None:
        if self.method.shares_factor:
            require_one_factor(by_site)
        sites = side_by_side(self.plan, self.cohort, by_site)
        scale = self.method.remainder_scale(len(sites.sites))
        self.remainder = {name: values * scale for name, values in self.remainder.items()}
        self.merged = self.method.merge(sites)
        if self.lines:
            self.merged = self._scaled_by_depth(self.lines, self.merged, sites)
        self.played = 1

    def _scaled_by_depth(self, lines: Lines, merged: Merge, sites: SiteUpdates) -> Merge:
        start, blocks = lines.start(merged, sites), self.plan.blocks
        block_of = {s.name: group.block for group in self.plan.groups for s in group.layers}
        self.remainder = lines.scaled_remainder(self.remainder, start, blocks)
        return lines.scaled(merged, start, block_of, len(blocks))
