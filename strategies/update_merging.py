"""Methods of one round: ask for the sites' updates, and merge them as the method says."""

from __future__ import annotations

from collections.abc import Mapping

from layerweld.merging.lines import Lines
from layerweld.merging.one_round import Merge, SiteUpdates
from layerweld.updates.shared_factor import require_one_factor
from strategies.rounds import MethodRounds, Outcome, Round
from strategies.site_updates import OfOneSite, side_by_side, updates_round


class UpdateMerging(MethodRounds):
    """Ask every site for its updates once, and apply one method to all of them.

    Nothing is kept: a resumed run asks again.
    """

    count = 1

    def __post_init__(self) -> None:
        kernel = self.settings.of_method(self.method.table)
        self._kernel = kernel.unscaled() if self.method.lines else kernel
        self._merge = Merge({})

    def round_at(self, index: int) -> Round[OfOneSite]:
        """The one round there is."""
        factors_too = self._kernel.averages_factors
        return updates_round(self.plan, self.cohort, self._use, factors_too=factors_too)

    def outcome(self) -> Outcome:
        """What the method made of the updates."""
        return self.outcome_of(self._merge)

    def _use(self, by_site: Mapping[str, OfOneSite]) -> None:
        if "shared A" in self.method.needs:
            require_one_factor(by_site)
        sites = side_by_side(self.plan, self.cohort, by_site)
        scale = self._kernel.other_params_scale(len(sites.sites))
        self.other_params = {name: values * scale for name, values in self.other_params.items()}
        self._merge = self._kernel.merge(sites)
        if self.method.lines:
            self._merge = self._scaled_by_depth(self.settings.lines, self._merge, sites)

    def _scaled_by_depth(self, lines: Lines, merged: Merge, sites: SiteUpdates) -> Merge:
        start, blocks = lines.start(merged, sites), self.plan.blocks
        block_of = {s.name: group.block for group in self.plan.groups for s in group.layers}
        self.other_params = lines.scaled_other_params(self.other_params, start, blocks)
        return lines.scaled(merged, start, block_of, len(blocks))
