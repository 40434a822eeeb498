"""Methods of one round: ask for the sites' updates, and merge them as the method says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.merging.lines import Lines
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates
from layerweld.merging.spectral import relative_distance, truncated
from layerweld.plan import MergePlan
from layerweld.transport import (
    encode_run,
    from_arrays,
    num_bytes,
    to_arrays,
    update_tensors,
    updates_from,
)
from layerweld.updates import Update
from strategies.cohort import Cohort, stream_replies


class UpdateMerging(Strategy):
    """Ask every site for its updates once, and apply one method to all of them.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        run: identifies the run.
        method: what merges.
        samples: calibration rows by site.
        remainder: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
        lines: scales the merge by depth at the end, if given.
        rank: to which every merged update is compressed; 0 for not at all.
    """

    def __init__(
        self,
        plan: MergePlan,
        cohort: Cohort,
        run: str,
        method: MergeMethod,
        samples: Mapping[str, int],
        remainder: Mapping[str, Tensor],
        lines: Lines | None = None,
        rank: int = 0,
    ) -> None:
        self.plan = plan
        self.cohort = cohort
        self.run = run
        self.method = method
        self.samples = samples
        scale = method.remainder_scale(len(samples))
        self.remainder = {name: values * scale for name, values in remainder.items()}
        self.lines = lines
        self.rank = rank
        self.merged = Merge({})
        self.bytes_up: dict[str, int] = {}

    def play(self, grid: Grid) -> None:
        """The one round there is."""
        messages = self.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
        self.aggregate_train(1, stream_replies(grid, messages, self.cohort.timeout))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for the sites' updates."""
        return self.cohort.messages(encode_run(self.run), "train.adapter", "adapter")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Merge once all sites have answered, in the order of their names."""
        by_site: dict[str, dict[str, Update]] = {}
        for site, reply in self.cohort.checked(replies, "adapter"):
            self.bytes_up[site] = num_bytes(reply.content)
            by_site[site] = updates_from(from_arrays(reply.content.array_records["updates"]))
            self._check(site, by_site[site])
        sites = self._side_by_side(by_site)
        merged = self.method.merge(sites)
        if self.lines:
            merged = self._scaled_by_depth(self.lines, merged, sites)
        self.merged = _compressed(merged, self.rank) if self.rank else merged
        metrics = MetricRecord({"layers": len(self.merged.updates)})
        return to_arrays(update_tensors(self.merged.updates)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: the server evaluates finished models itself."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing was asked."""

    def summary(self) -> None:
        """Nothing to add to the run's own progress."""

    def _side_by_side(self, by_site: Mapping[str, Mapping[str, Update]]) -> SiteUpdates:
        names = sorted(by_site)
        layers = {
            layer: {site: by_site[site][layer] for site in names if layer in by_site[site]}
            for layer in self.plan.layer_names
        }
        return SiteUpdates(
            {site: self.samples[site] for site in names},
            {layer: updates for layer, updates in layers.items() if updates},
        )

    def _scaled_by_depth(self, lines: Lines, merged: Merge, sites: SiteUpdates) -> Merge:
        start, blocks = lines.start(merged, sites), self.plan.blocks
        block_of = {s.name: group.block for group in self.plan.groups for s in group.layers}
        self.remainder = lines.scaled_remainder(self.remainder, start, blocks)
        return lines.scaled(merged, start, block_of, len(blocks))

    def _check(self, site: str, updates: Mapping[str, Update]) -> None:
        shapes = {s.name: (s.d_out, g.d_in) for g in self.plan.groups for s in g.layers}
        for layer, update in updates.items():
            if update.shape != shapes.get(layer):
                raise RefusedReplyError(
                    f"{site}: the update of {layer!r} is {update.shape}, not {shapes.get(layer)}"
                )
            if not all(
                bool(torch.isfinite(t).all()) for t in update_tensors({"": update}).values()
            ):
                raise RefusedReplyError(f"{site}: the update of {layer!r} is not finite")


def _compressed(merged: Merge, rank: int) -> Merge:
    updates: dict[str, Update] = {k: truncated(u, rank) for k, u in merged.updates.items()}
    error = relative_distance(list(updates.values()), list(merged.updates.values()))
    return Merge(updates, {**merged.figures, "compression error": error})
