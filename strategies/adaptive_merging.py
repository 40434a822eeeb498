"""AdaMerging: the sites' updates once, then gradients of a few coefficients, round after round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from flwr.app import RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.merging.adamerging import LayerCoefficients, merge_by_layer, weighed
from layerweld.merging.one_round import Merge, SiteUpdates
from layerweld.plan import MergePlan
from layerweld.settings.run import RunSettings
from layerweld.transport.coefficients import (
    COEFFICIENTS,
    CoefficientsReply,
    CoefficientsRequest,
    coefficients_layout,
    decode_coefficients,
    encode_coefficients_request,
)
from layerweld.transport.layout import Budget
from layerweld.updates.digest import first_prefix, prefix_of_sites
from layerweld.updates.exact_sum import LIMIT, ExactSum
from layerweld.updates.named_tensors import site_tensors, updates_by_site
from strategies.cohort import Cohort
from strategies.kept_rounds import KeptRound, RoundJournal, RoundLedger, Traffic
from strategies.round_by_round import Round
from strategies.site_updates import OfOneSite, side_by_side, updates_round

_LARGEST_ENTROPY = 20.0
"""Nats: of a head that is undecided between five hundred million classes."""


class AdaptiveMerging:
    """Learn one coefficient per site and layer from the entropy of every site's own head.

    Round 0 collects the updates. Every later one sends the coefficients, adds up the gradients
    that the sites answer with (exactly, so that nothing depends on who answers first), and takes
    one step of Adam. The first of these also sends every site all sites' updates; a site that has
    lost them says so and gets them again.

    Args:
        method: ``adamerging`` or ``adamerging++``.
        plan: the layers that are merged.
        cohort: the sites.
        settings: of the run.
        remainder: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
        journal: keeps every round.
    """

    def __init__(
        self,
        method: str,
        plan: MergePlan,
        cohort: Cohort,
        settings: RunSettings,
        remainder: Mapping[str, Tensor],
        journal: RoundJournal,
    ) -> None:
        self.plan = plan
        self.cohort = cohort
        self.remainder = remainder
        self.count = 1 + settings.adamerging.rounds
        self.played = 0
        self._method = method
        self._settings = settings
        self._ledger = RoundLedger(journal, cohort)
        self._received: Mapping[str, OfOneSite] = {}
        self._lacking: set[str] = set()  # sites that must be sent the updates
        for kept in journal.load():
            self._resume(kept)

    @property
    def traffic(self) -> Traffic:
        """Bytes so far."""
        return self._ledger.traffic

    @property
    def merged(self) -> Merge:
        """With the coefficients as they are now."""
        if not self.played:
            return Merge({})
        values = self._coefficients.values
        merge = merge_by_layer(self._weighed, values, self.plan.layer_names)
        spread = {"smallest coefficient": values.min(), "largest coefficient": values.max()}
        return replace(
            merge, figures=self._ledger.figures | {k: float(v) for k, v in spread.items()}
        )

    def next_round(self) -> Round[OfOneSite] | Round[CoefficientsReply]:
        """The updates first, then gradients."""
        if not self.played:
            return updates_round(self.plan, self.cohort, self._collected)
        question = CoefficientsRequest(
            run=self.cohort.run,
            method=self._method,
            round=self.played,
            layers=self.plan.layer_names,
            sites=self._weighed.sites,
            plan=self.plan.digest,
            chain_digest=self._held,
            averaged=bool(self.remainder),
            coefficients=self._coefficients.values.float(),
        )
        asked = _GradientRound(question, self._received, self.remainder, self._lacking)
        what = f"gradient of round {self.played}"
        return Round(COEFFICIENTS, what, asked.content, asked.read, asked.budget, self._step)

    def _collected(self, received: Mapping[str, OfOneSite]) -> None:
        self._begin(received)
        self._lacking |= received.keys()
        self._keep(site_tensors(received))

    def _begin(self, received: Mapping[str, OfOneSite]) -> None:
        sites = side_by_side(self.plan, self.cohort, received)
        settings = self._settings.adamerging
        shape = (len(sites.sites), len(self.plan.layer_names))
        first = first_prefix(self.plan.digest, self._settings.digest(), self.remainder)
        self._received = received
        self._weighed: SiteUpdates = weighed(self._method, sites, settings)
        self._held = prefix_of_sites(first, received)
        self._coefficients = LayerCoefficients(shape, settings)

    def _step(self, answers: Iterator[tuple[str, CoefficientsReply]]) -> None:
        gradient, entropy = ExactSum(tuple(self._coefficients.values.shape)), ExactSum(())
        sites = 0
        for _site, answer in answers:
            gradient.add(answer.gradient.double())
            entropy.add(torch.tensor(answer.entropy, dtype=torch.float64))
            sites += 1
        self._coefficients.step(gradient.total())
        mean = float(entropy.total()) / sites
        figures = self._ledger.figures
        figures.setdefault("mean entropy in the first round", mean)
        figures["mean entropy in the last round"] = mean
        self._keep(self._coefficients.descent.tensors())

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        self._ledger.keep(self.played, tensors)
        self.played += 1

    def _resume(self, kept: KeptRound) -> None:
        if kept.index == 0:
            self._begin(updates_by_site(kept.tensors))
        else:
            self._coefficients.descent.restore(kept.tensors)
        self._ledger.restore(kept)
        self.played = kept.index + 1


class _GradientRound:
    """What one round asks each site, and which answers may be added."""

    def __init__(
        self,
        question: CoefficientsRequest,
        received: Mapping[str, OfOneSite],
        remainder: Mapping[str, Tensor],
        lacking: set[str],
    ) -> None:
        self._question = question
        self._usual = encode_coefficients_request(question)
        self._whole = lambda: encode_coefficients_request(
            question.with_updates(received, remainder)
        )
        self._lacking = lacking

    def content(self, site: str) -> RecordDict:
        """The coefficients, and the updates to a site that lacks them."""
        return self._whole() if site in self._lacking else self._usual

    def budget(self, _site: str) -> Budget:
        """What an answer may take."""
        asked = self._question
        return coefficients_layout(len(asked.sites), len(asked.layers)).budget

    def read(self, site: str, content: RecordDict) -> CoefficientsReply | None:
        """A gradient that may be added; None where the site must be sent the updates first."""
        asked = self._question
        answer = decode_coefficients(content, len(asked.sites), len(asked.layers))
        if answer.lacks and site in self._lacking:
            raise RefusedReplyError(
                "it still lacks the updates after it was sent them; is its cache folder writable, "
                "and its disk not full?"
            )
        if answer.lacks:
            self._lacking.add(site)
            return None
        _require_bounded(answer)
        self._lacking.discard(site)
        return answer


def _require_bounded(answer: CoefficientsReply) -> None:
    if not bool((answer.gradient.abs() < LIMIT).all()):  # False for NaN too
        raise RefusedReplyError("its gradient is not finite, or beyond 2⁴²")
    if not 0 <= answer.entropy <= _LARGEST_ENTROPY:
        raise RefusedReplyError(f"an entropy of {answer.entropy}")
