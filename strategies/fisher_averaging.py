"""Fisher averaging: add up importances and weighted updates as they come, and divide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.exact_sum import LIMIT
from layerweld.expected import fisher_shapes
from layerweld.merging.fisher import FisherPool
from layerweld.merging.one_round import Merge
from layerweld.named_tensors import update_tensors
from layerweld.plan import MergePlan
from layerweld.transport.arrays import num_bytes, read_arrays, to_arrays
from layerweld.transport.messages import ModelToMeasure
from layerweld.transport.model import encode_model
from layerweld.transport.untrusted import refusing_malformed
from strategies.cohort import Cohort
from strategies.inquiry import Inquiry

SiteAnswer = dict[str, Tensor]
"""What one site sends: ``importance/<layer>`` and ``product/<layer>``."""


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
        self._inquiry: Inquiry[SiteAnswer] | None = None

    def play(self, grid: Grid) -> None:
        """The one round there is."""
        self._merge(self._new_inquiry(grid).answers())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask about the layers that are merged, in each site's individual model."""
        self._inquiry = self._new_inquiry(grid)
        return self._inquiry.messages()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Add each reply and forget it; divide when all are there."""
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
        asked = encode_model(ModelToMeasure(self.run, "individual", self.plan.layer_names))
        return Inquiry(
            grid, self.cohort, "train.fisher", "Fisher sums", lambda _site: asked, self._read
        )

    def _merge(self, answers: Iterable[tuple[str, SiteAnswer]]) -> None:
        pool = FisherPool({s.name: (s.d_out, g.d_in) for g in self.plan.groups for s in g.layers})
        for _site, sums in answers:
            for layer in self.plan.layer_names:
                pool.add(layer, sums[f"importance/{layer}"], sums[f"product/{layer}"])
        self.merged = Merge(pool.merged())

    def _read(self, site: str, content: RecordDict) -> SiteAnswer:
        with refusing_malformed():
            sums = read_arrays(content.array_records["fisher"], fisher_shapes(self.plan))
        for name, values in sums.items():
            if not bool((values.abs() < LIMIT).all()):  # False for NaN too
                raise RefusedReplyError(f"{name!r} is not finite, or beyond 2⁴²")
            if name.startswith("importance/") and bool((values < 0).any()):
                raise RefusedReplyError(f"{name!r}: a squared gradient is negative")
        self.bytes_up[site] = num_bytes(content)
        return sums
