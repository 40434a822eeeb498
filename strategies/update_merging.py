"""Merges that need no statistics: scaled sums of the sites' updates, in one round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from layerweld.errors import RefusedReplyError
from layerweld.exact_sum import ExactSum
from layerweld.plan import MergePlan
from layerweld.transport import (
    encode_run,
    from_arrays,
    num_bytes,
    to_arrays,
    update_tensors,
    updates_from,
)
from layerweld.updates import DenseUpdate, LowRankUpdate, Update, stack
from strategies.cohort import Cohort, stream_replies


class UpdateAveraging(Strategy):
    """``ΔW_M = factor · Σ ΔW_i``: the mean for ``1 / N``, task arithmetic for its λ.

    What is added up are the products ``B_i A_i`` and not the factors apart, so the mean is exact:
    LoRA updates are stacked into one of rank ``Σ r_i``, dense ones are summed exactly.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        run: identifies the run.
        factor: what the sum is multiplied by.
    """

    def __init__(self, plan: MergePlan, cohort: Cohort, run: str, factor: float) -> None:
        self.plan = plan
        self.cohort = cohort
        self.run = run
        self.factor = factor
        self.merged: dict[str, Update] = {}
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
        """Stack or sum the updates, layer by layer, in the order of the sites' names."""
        by_site: dict[str, dict[str, Update]] = {}
        for site, reply in self.cohort.checked(replies, "adapter"):
            self.bytes_up[site] = num_bytes(reply.content)
            by_site[site] = updates_from(from_arrays(reply.content.array_records["updates"]))
            self._check(site, by_site[site])
        for layer in self.plan.layer_names:
            terms = [by_site[site][layer] for site in sorted(by_site) if layer in by_site[site]]
            if terms:
                self.merged[layer] = _scaled_sum(terms, self.factor)
        metrics = MetricRecord({"layers": len(self.merged)})
        return to_arrays(update_tensors(self.merged)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: the server evaluates finished models itself."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing was asked."""

    def summary(self) -> None:
        """Nothing to add to the run's own progress."""

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


def _scaled_sum(terms: list[Update], factor: float) -> Update:
    if all(isinstance(term, LowRankUpdate) for term in terms):
        return stack([term for term in terms if isinstance(term, LowRankUpdate)]) * factor
    total = ExactSum(terms[0].shape)
    for term in terms:
        total.add(term.dense().double())
    return DenseUpdate((total.total() * factor).float())
