"""Fisher averaging: add up importances and weighted updates as they come, and divide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flwr.app import RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.merging.fisher import Fisher, FisherPool, implied_update, problem_with
from layerweld.merging.one_round import Merge
from layerweld.transport.fisher import FISHER, FisherSums, decode_fisher, fisher_layout
from layerweld.transport.model import ModelToMeasure, encode_model
from layerweld.updates.bounds import LARGEST_WEIGHT, is_usable, part_of
from layerweld.updates.proportion import Part
from strategies.poll import Request
from strategies.rounds import MethodRounds, Outcome, Round


@dataclass(frozen=True)
class AdmittedSums:
    """One site's Fisher sums as an honest model can have them.

    Attributes:
        sums: as they came.
        sizes: of the ``ΔW`` that they stand for, by layer.
    """

    sums: FisherSums
    sizes: Mapping[str, Part]


class FisherAveraging(MethodRounds):
    """Ask every site once for the Fisher information of its own model, and for that times ΔW.

    Nothing is kept: a resumed run asks again.
    """

    count = 1

    def __post_init__(self) -> None:
        self._merge = Merge({})

    def round_at(self, index: int) -> Round[AdmittedSums]:
        """Ask about the layers that are merged, in each site's individual model."""
        model = ModelToMeasure(self.cohort.run, "individual", self.plan.layer_names)
        asked, budget = encode_model(FISHER, model), fisher_layout(self.plan).budget
        request = Request(
            FISHER, "Fisher sums", lambda _site: asked, self._read, lambda _site: budget
        )
        return Round(request, self._fold)

    def outcome(self) -> Outcome:
        """The sums of the products over those of the importances."""
        return self.outcome_of(self._merge)

    def _read(self, _site: str, content: RecordDict) -> AdmittedSums:
        sums = decode_fisher(content, self.plan)
        problem = problem_with(sums.importance, self.settings.table(Fisher).floor)
        if problem:
            raise RefusedReplyError(problem)
        sizes = {
            layer: _size(layer, implied_update(values, sums.product[layer]))
            for layer, values in sums.importance.items()
        }
        return AdmittedSums(sums, sizes)

    def _fold(self, replies: Iterator[tuple[str, AdmittedSums]]) -> None:
        """Add each site's sums and forget them; divide when all are there."""
        pool = FisherPool(self.plan.shapes)
        sizes: dict[str, Mapping[str, Part]] = {}
        for site, admitted in replies:
            sizes[site] = admitted.sizes
            for layer in self.plan.layer_names:
                pool.add(layer, admitted.sums.importance[layer], admitted.sums.product[layer])
        self.cohort.require_proportion(sizes, "the update in its sums")
        self._merge = Merge(pool.merged())


def _size(layer: str, update: Tensor) -> Part:
    if not is_usable(update):
        raise RefusedReplyError(
            f"only an update with numbers that are not finite, or beyond {LARGEST_WEIGHT:.0f}, "
            f"has these sums of {layer!r}"
        )
    return part_of(update)
