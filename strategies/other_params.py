"""What full fine-tuning changed outside of the linear layers, averaged over the sites."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from flwr.app import RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.transport.arrays import Shapes
from layerweld.transport.identity import encode_plain
from layerweld.transport.other_params import OTHER_PARAMS, decode_other_params, other_params_layout
from layerweld.updates.bounds import LARGEST_WEIGHT, is_usable, part_of
from layerweld.updates.exact_sum import ExactSum
from layerweld.updates.proportion import Part
from strategies.cohort import Cohort
from strategies.poll import Request
from strategies.rounds import Kept, Outcome, Round, Rounds


class OtherParams(Rounds):
    """Ask every site once for what it changed, and take the mean over all sites.

    It is kept: every round of every method is measured behind just this mean, and a run that is
    resumed without a site would compute another one.

    Args:
        cohort: the sites.
        parameters: shape of every parameter outside of the layers.
        whole: the sites that fine-tuned a whole model; the others have nothing to send.
    """

    count = 1

    def __init__(self, cohort: Cohort, parameters: Shapes, whole: Collection[str]) -> None:
        self._cohort = cohort
        self._parameters = parameters
        self._whole = whole
        self._mean: Mapping[str, Tensor] = {}

    def round_at(self, index: int) -> Round[Mapping[str, Tensor]]:
        """The one round there is."""
        asked = encode_plain(OTHER_PARAMS, self._cohort.run)
        budget = other_params_layout(self._parameters).budget
        request = Request(
            OTHER_PARAMS, "other parameters", lambda _site: asked, self._read, lambda _site: budget
        )
        return Round(request, self._fold)

    def advance(self, kept: Kept) -> None:
        """The mean is there."""
        self._mean = dict(sorted(kept.tensors.items()))

    def outcome(self) -> Outcome:
        """The mean, float32; no layer is merged."""
        return Outcome({}, self._mean, {})

    def _read(self, site: str, content: RecordDict) -> Mapping[str, Tensor]:
        values = decode_other_params(content, self._parameters if site in self._whole else {})
        for name, one in values.items():
            if not is_usable(one):
                raise RefusedReplyError(
                    f"what changed in {name!r} is not finite, or beyond {LARGEST_WEIGHT:.0f}"
                )
        return values

    def _fold(self, replies: Iterator[tuple[str, Mapping[str, Tensor]]]) -> Kept:
        sums: dict[str, ExactSum] = {}
        sizes: dict[str, Mapping[str, Part]] = {}
        for site, changes in replies:
            sizes[site] = {name: part_of(values) for name, values in changes.items()}
            for name, values in changes.items():
                sums.setdefault(name, ExactSum(tuple(values.shape))).add(values.double())
        self._cohort.require_proportion(sizes, "what its fine-tuning changed")
        mean = {name: (one.total() / len(sizes)).float() for name, one in sums.items()}
        return Kept(mean, {})
