"""Methods of one round: ask for the sites' updates, and merge them as the method says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.exact_sum import LIMIT
from layerweld.expected import update_shapes
from layerweld.merging.lines import Lines
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates
from layerweld.merging.spectral import relative_distance, truncated
from layerweld.named_tensors import update_tensors, updates_from
from layerweld.plan import MergePlan
from layerweld.transport.arrays import num_bytes, read_arrays, to_arrays
from layerweld.transport.run import encode_run
from layerweld.transport.untrusted import refusing_malformed
from layerweld.updates import LowRankUpdate, Update
from strategies.cohort import Cohort
from strategies.inquiry import Inquiry

SiteAnswer = dict[str, Update]
"""What one site sends: its ``ΔW`` by layer."""


class UpdateMerging(Strategy):
    """Ask every site for its updates once, and apply one method to all of them.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        run: identifies the run.
        method: what merges.
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
        remainder: Mapping[str, Tensor],
        lines: Lines | None = None,
        rank: int = 0,
    ) -> None:
        self.plan = plan
        self.cohort = cohort
        self.run = run
        self.method = method
        self.remainder = remainder
        self.lines = lines
        self.rank = rank
        self.merged = Merge({})
        self.bytes_up: dict[str, int] = {}
        self._inquiry: Inquiry[SiteAnswer] | None = None

    def play(self, grid: Grid) -> None:
        """The one round there is."""
        self._merge(self._new_inquiry(grid).answers())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for the sites' updates."""
        self._inquiry = self._new_inquiry(grid)
        return self._inquiry.messages()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Merge once all sites that are left have answered, in the order of their names."""
        assert self._inquiry is not None
        self._merge(self._inquiry.answers(replies))
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

    def _new_inquiry(self, grid: Grid) -> Inquiry[SiteAnswer]:
        content = encode_run(self.run)
        return Inquiry(
            grid, self.cohort, "train.adapter", "updates", lambda _site: content, self._read
        )

    def _merge(self, answers: Iterable[tuple[str, SiteAnswer]]) -> None:
        sites = self._side_by_side(dict(answers))
        scale = self.method.remainder_scale(len(sites.sites))
        self.remainder = {name: values * scale for name, values in self.remainder.items()}
        merged = self.method.merge(sites)
        if self.lines:
            merged = self._scaled_by_depth(self.lines, merged, sites)
        self.merged = _compressed(merged, self.rank) if self.rank else merged

    def _side_by_side(self, by_site: Mapping[str, Mapping[str, Update]]) -> SiteUpdates:
        names = sorted(by_site)
        layers = {
            layer: {site: by_site[site][layer] for site in names if layer in by_site[site]}
            for layer in self.plan.layer_names
        }
        return SiteUpdates(
            {site: self.cohort.introductions[site].samples for site in names},
            {layer: updates for layer, updates in layers.items() if updates},
        )

    def _scaled_by_depth(self, lines: Lines, merged: Merge, sites: SiteUpdates) -> Merge:
        start, blocks = lines.start(merged, sites), self.plan.blocks
        block_of = {s.name: group.block for group in self.plan.groups for s in group.layers}
        self.remainder = lines.scaled_remainder(self.remainder, start, blocks)
        return lines.scaled(merged, start, block_of, len(blocks))

    def _read(self, site: str, content: RecordDict) -> SiteAnswer:
        introduction = self.cohort.introductions[site]
        ranks = dict(zip(introduction.layers, introduction.ranks, strict=True))
        with refusing_malformed():
            record = content.array_records["updates"]
            updates = updates_from(read_arrays(record, update_shapes(self.plan, ranks)))
        for layer, update in updates.items():
            if not _bound(update) < LIMIT:  # False for NaN too
                raise RefusedReplyError(f"the update of {layer!r} is not finite, or beyond 2⁴²")
        self.bytes_up[site] = num_bytes(content)
        return updates


def _bound(update: Update) -> float:
    """No entry of the update is larger."""
    if isinstance(update, LowRankUpdate):
        return float(update.left.abs().max()) * float(update.right.abs().max()) * update.rank
    return float(update.weight.abs().max())


def _compressed(merged: Merge, rank: int) -> Merge:
    updates: dict[str, Update] = {k: truncated(u, rank) for k, u in merged.updates.items()}
    error = relative_distance(list(updates.values()), list(merged.updates.values()))
    return Merge(updates, {**merged.figures, "compression error": error})
