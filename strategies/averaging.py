"""Merges that need no statistics: scaled sums of the sites' updates, in one round."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from layerweld.errors import RefusedReplyError
from layerweld.exact_sum import LIMIT, ExactSum
from layerweld.expected import update_shapes
from layerweld.plan import MergePlan
from layerweld.transport import (
    encode_run,
    num_bytes,
    read_arrays,
    refusing_malformed,
    to_arrays,
    update_tensors,
    updates_from,
)
from layerweld.updates import DenseUpdate, LowRankUpdate, Update, stack
from strategies.cohort import Cohort
from strategies.inquiry import Inquiry


class UpdateAveraging(Strategy):
    """``ΔW_M = factor · Σ ΔW_i``: the mean, or task arithmetic for a given λ.

    What is added up are the products ``B_i A_i`` and not the factors apart, so the mean is exact:
    LoRA updates are stacked into one of rank ``Σ r_i``, dense ones are summed exactly.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        run: identifies the run.
        scaling: what the sum is multiplied by; None for the mean over the sites that answer.
    """

    def __init__(self, plan: MergePlan, cohort: Cohort, run: str, scaling: float | None) -> None:
        self.plan = plan
        self.cohort = cohort
        self.run = run
        self.factor = scaling or 1.0
        self.merged: dict[str, Update] = {}
        self.bytes_up: dict[str, int] = {}
        self._scaling = scaling
        self._inquiry: Inquiry[dict[str, Update]] | None = None

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
        """Stack or sum the updates, layer by layer, in the order of the sites' names."""
        assert self._inquiry is not None
        self._merge(self._inquiry.answers(replies))
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

    def _new_inquiry(self, grid: Grid) -> Inquiry[dict[str, Update]]:
        content = encode_run(self.run)
        return Inquiry(
            grid, self.cohort, "train.adapter", "updates", lambda _site: content, self._read
        )

    def _merge(self, answers: Iterable[tuple[str, dict[str, Update]]]) -> None:
        by_site = dict(answers)
        self.factor = self._scaling or 1 / len(by_site)
        for layer in self.plan.layer_names:
            terms = [by_site[site][layer] for site in sorted(by_site) if layer in by_site[site]]
            if terms:
                self.merged[layer] = _scaled_sum(terms, self.factor)

    def _read(self, site: str, content: RecordDict) -> dict[str, Update]:
        introduction = self.cohort.introductions[site]
        ranks = dict(zip(introduction.layers, introduction.ranks, strict=True))
        with refusing_malformed():
            record = content.array_records["updates"]
            tensors = read_arrays(record, update_shapes(self.plan, ranks))
            updates = updates_from(tensors)
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


def _scaled_sum(terms: list[Update], factor: float) -> Update:
    if all(isinstance(term, LowRankUpdate) for term in terms):
        return stack([term for term in terms if isinstance(term, LowRankUpdate)]) * factor
    total = ExactSum(terms[0].shape)
    for term in terms:
        total.add(term.dense().double())
    return DenseUpdate((total.total() * factor).float())
