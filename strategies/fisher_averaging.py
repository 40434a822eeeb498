"""Fisher averaging: add up importances and weighted updates as they come, and divide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.merging.fisher import FisherPool
from layerweld.merging.one_round import Merge
from layerweld.plan import MergePlan
from layerweld.transport import (
    ModelToMeasure,
    encode_model,
    from_arrays,
    num_bytes,
    to_arrays,
    update_tensors,
)
from strategies.cohort import Cohort, stream_replies


class FisherAveraging(Strategy):
    """Ask every site once for the Fisher information of its own model, and for that times ΔW.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        run: identifies the run.
        remainder: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
    """

    def __init__(
        self, plan: MergePlan, cohort: Cohort, run: str, remainder: Mapping[str, Tensor]
    ) -> None:
        self.plan = plan
        self.cohort = cohort
        self.run = run
        self.remainder = remainder
        self.merged = Merge({})
        self.bytes_up: dict[str, int] = {}

    def play(self, grid: Grid) -> None:
        """The one round there is."""
        messages = self.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
        self.aggregate_train(1, stream_replies(grid, messages, self.cohort.timeout))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask about the layers that are merged, in each site's individual model."""
        asked = encode_model(ModelToMeasure(self.run, "individual", self.plan.layer_names))
        return self.cohort.messages(asked, "train.fisher", "fisher")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Add each reply and forget it; divide when all are there."""
        pool = FisherPool({s.name: (s.d_out, g.d_in) for g in self.plan.groups for s in g.layers})
        for site, reply in self.cohort.checked(replies, "fisher"):
            self.bytes_up[site] = num_bytes(reply.content)
            self._add(pool, site, reply)
        self.merged = Merge(pool.merged())
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

    def _add(self, pool: FisherPool, site: str, reply: Message) -> None:
        tensors = from_arrays(reply.content.array_records["fisher"])
        for layer in self.plan.layer_names:
            try:
                pool.add(layer, tensors[f"importance/{layer}"], tensors[f"product/{layer}"])
            except (KeyError, ValueError) as error:
                raise RefusedReplyError(f"{site}: Fisher sums of {layer!r}: {error}") from None
