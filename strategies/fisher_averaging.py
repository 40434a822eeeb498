"""Fisher averaging: add up importances and weighted updates as they come, and divide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flwr.app import RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.exact_sum import LIMIT
from layerweld.expected import fisher_shapes
from layerweld.merging.fisher import FisherPool
from layerweld.merging.one_round import Merge
from layerweld.plan import MergePlan
from layerweld.transport.fisher import decode_fisher, fisher_budget
from layerweld.transport.messages import ModelToMeasure
from layerweld.transport.model import encode_model
from strategies.cohort import Cohort
from strategies.kept_rounds import Traffic
from strategies.round_by_round import Round

OfOneSite = dict[str, Tensor]
"""``importance/<layer>`` and ``product/<layer>``."""


class FisherAveraging:
    """Ask every site once for the Fisher information of its own model, and for that times ΔW.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        remainder: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
    """

    def __init__(self, plan: MergePlan, cohort: Cohort, remainder: Mapping[str, Tensor]) -> None:
        self.plan = plan
        self.remainder = remainder
        self.merged = Merge({})
        self.traffic = Traffic()
        self.count = 1
        self.played = 0
        self._model = ModelToMeasure(cohort.run, "individual", plan.layer_names)

    def next_round(self) -> Round[OfOneSite]:
        """Ask about the layers that are merged, in each site's individual model."""
        asked, budget = encode_model(self._model), fisher_budget(fisher_shapes(self.plan))
        return Round(
            "train.fisher",
            "Fisher sums",
            lambda _site: asked,
            self._read,
            lambda _site: budget,
            self._merge,
        )

    def _merge(self, answers: Iterator[tuple[str, OfOneSite]]) -> None:
        """Add each reply and forget it; divide when all are there."""
        pool = FisherPool({s.name: (s.d_out, g.d_in) for g in self.plan.groups for s in g.layers})
        for _site, sums in answers:
            for layer in self.plan.layer_names:
                pool.add(layer, sums[f"importance/{layer}"], sums[f"product/{layer}"])
        self.merged = Merge(pool.merged())
        self.played = 1

    def _read(self, _site: str, content: RecordDict) -> OfOneSite:
        sums = decode_fisher(content, fisher_shapes(self.plan))
        _require_sums(sums)
        return sums


def _require_sums(sums: OfOneSite) -> None:
    for name, values in sums.items():
        if not bool((values.abs() < LIMIT).all()):  # False for NaN too
            raise RefusedReplyError(f"{name!r} is not finite, or beyond 2⁴²")
        if name.startswith("importance/") and bool((values < 0).any()):
            raise RefusedReplyError(f"{name!r}: a squared gradient is negative")
