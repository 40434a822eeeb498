"""Fisher averaging: add up importances and weighted updates as they come, and divide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flwr.app import RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.merging.fisher import Fisher, FisherPool, implied_update, problem_with
from layerweld.merging.one_round import Merge
from layerweld.plan import MergePlan
from layerweld.transport.fisher import FISHER, FisherSums, decode_fisher, fisher_layout
from layerweld.transport.model import ModelToMeasure, encode_model
from layerweld.updates.bounds import LARGEST_WEIGHT, is_usable, part_of
from layerweld.updates.proportion import Part
from strategies.cohort import Cohort
from strategies.kept_rounds import Traffic
from strategies.round_by_round import Round


class FisherAveraging:
    """Ask every site once for the Fisher information of its own model, and for that times ΔW.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        remainder: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
        settings: the method's own.
    """

    def __init__(
        self,
        plan: MergePlan,
        cohort: Cohort,
        remainder: Mapping[str, Tensor],
        settings: Fisher,
    ) -> None:
        self.plan = plan
        self.cohort = cohort
        self.remainder = remainder
        self.settings = settings
        self.merged = Merge({})
        self.traffic = Traffic()
        self.count = 1
        self.played = 0
        self._model = ModelToMeasure(cohort.run, "individual", plan.layer_names)

    def next_round(self) -> Round[FisherSums]:
        """Ask about the layers that are merged, in each site's individual model."""
        request, budget = encode_model(FISHER, self._model), fisher_layout(self.plan).budget
        return Round(
            FISHER,
            "Fisher sums",
            lambda _site: request,
            self._read,
            lambda _site: budget,
            self._merge,
        )

    def _merge(self, answers: Iterator[tuple[str, FisherSums]]) -> None:
        """Add each reply and forget it; divide when all are there."""
        pool = FisherPool(self.plan.shapes)
        sizes: dict[str, dict[str, Part]] = {}
        for site, sums in answers:
            sizes[site] = {}
            for layer in self.plan.layer_names:
                importance, product = sums.importance[layer], sums.product[layer]
                sizes[site][layer] = part_of(implied_update(importance, product))
                pool.add(layer, importance, product)
        self.cohort.require_proportion(sizes, "the update in its sums")
        self.merged = Merge(pool.merged())
        self.played = 1

    def _read(self, _site: str, content: RecordDict) -> FisherSums:
        sums = decode_fisher(content, self.plan)
        self._require_sums(sums)
        return sums

    def _require_sums(self, sums: FisherSums) -> None:
        problem = problem_with(sums.importance, self.settings.floor)
        if problem:
            raise RefusedReplyError(problem)
        for layer, values in sums.importance.items():
            if not is_usable(implied_update(values, sums.product[layer])):
                raise RefusedReplyError(
                    f"only an update with numbers that are not finite, or beyond "
                    f"{LARGEST_WEIGHT:.0f}, has these sums of {layer!r}"
                )
