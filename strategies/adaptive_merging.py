"""AdaMerging: the sites' updates once, then gradients of a few coefficients, round after round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from flwr.app import RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.merging.adamerging import AdaMerging, LayerCoefficients, merge_by_layer, weighed
from layerweld.merging.one_round import SiteUpdates
from layerweld.plan import MergePlan
from layerweld.settings.run import RunSettings
from layerweld.transport.coefficients import (
    COEFFICIENTS,
    CoefficientsRequest,
    coefficients_layout,
    decode_coefficients,
    encode_coefficients_request,
)
from layerweld.transport.layout import Budget
from layerweld.updates.digest import digest_of_sites, first_digest
from layerweld.updates.exact_sum import LIMIT, ExactSum
from layerweld.updates.named_tensors import site_tensors, updates_by_site
from strategies.cohort import Cohort
from strategies.poll import Request
from strategies.rounds import Kept, Outcome, Round, Rounds
from strategies.site_updates import OfOneSite, side_by_side, updates_round

_LARGEST_ENTROPY = 20.0
"""Nats: of a head that is undecided between five hundred million classes."""


@dataclass(frozen=True)
class AdmittedGradient:
    """One site's gradient that can be added exactly.

    Attributes:
        gradient: by the coefficients, ``(sites, layers)`` float64.
        entropy: mean over the site's samples, in nats.
    """

    gradient: Tensor
    entropy: float


class AdaptiveMerging(Rounds):
    """Learn one coefficient per site and layer from the entropy of every site's own head.

    Round 0 collects the updates. Every later one sends the coefficients, adds up the gradients
    that the sites reply with (exactly, so that nothing depends on who replies first), and takes
    one step of Adam. The first of these also sends every site all sites' updates; a site that has
    lost them says so and gets them again. Updates, coefficients and Adam's moments are kept.

    Args:
        method: ``adamerging`` or ``adamerging++``.
        plan: the layers that are merged.
        cohort: the sites.
        settings: of the run.
        other_params: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
    """

    _weighed: SiteUpdates  # these two as soon as the updates are there
    _coefficients: LayerCoefficients

    def __init__(
        self,
        method: str,
        plan: MergePlan,
        cohort: Cohort,
        settings: RunSettings,
        other_params: Mapping[str, Tensor],
    ) -> None:
        self.count = 1 + settings.table(AdaMerging).rounds
        self._method = method
        self._plan = plan
        self._cohort = cohort
        self._settings = settings
        self._other_params = other_params
        self._received: Mapping[str, OfOneSite] = {}
        self._lacking: set[str] = set()  # sites that must be sent the updates
        self._metrics: Mapping[str, float] = {}

    def round_at(self, index: int) -> Round[Any]:
        """The updates first, then gradients."""
        if index == 0:
            return updates_round(self._plan, self._cohort, self._collect)
        asked = CoefficientsRequest(
            run=self._cohort.run,
            method=self._method,
            round=index,
            layers=self._plan.layer_names,
            sites=self._weighed.sites,
            plan=self._plan.digest,
            chain_digest=self._digest,
            averaged=bool(self._other_params),
            coefficients=self._coefficients.values.float(),
        )
        gradients = _Gradients(asked, self._received, self._other_params, self._lacking)
        content, read, budget = gradients.content, gradients.read, gradients.budget
        what = f"gradient of round {index}"
        return Round(Request(COEFFICIENTS, what, content, read, budget), self._fold)

    def advance(self, kept: Kept) -> None:
        """The updates are there, or one more step is taken."""
        self._metrics = kept.metrics
        if self._received:
            self._coefficients.descent.restore(kept.tensors)
            return
        self._received = updates_by_site(kept.tensors)
        sites = side_by_side(self._plan, self._cohort, self._received)
        shape = (len(sites.sites), len(self._plan.layer_names))
        first = first_digest(self._plan.digest, self._settings.digest(), self._other_params)
        self._weighed = weighed(self._method, sites, self._settings.table(AdaMerging))
        self._digest = digest_of_sites(first, self._received)
        self._coefficients = LayerCoefficients(shape, self._settings.table(AdaMerging))

    def outcome(self) -> Outcome:
        """With the coefficients as they are now."""
        values = self._coefficients.values
        merge = merge_by_layer(self._weighed, values, self._plan.layer_names)
        spread = {
            "smallest coefficient": float(values.min()),
            "largest coefficient": float(values.max()),
        }
        merge = replace(merge, metrics={**self._metrics, **spread})
        return Outcome.of(merge, self._other_params, self._settings.merge.rank)

    def _collect(self, received: Mapping[str, OfOneSite]) -> Kept:
        self._lacking |= received.keys()
        return Kept(site_tensors(received), {})

    def _fold(self, replies: Iterator[tuple[str, AdmittedGradient]]) -> Kept:
        """Add the gradients up, and take a step."""
        gradient, entropy = ExactSum(tuple(self._coefficients.values.shape)), ExactSum(())
        sites = 0
        for _site, admitted in replies:
            gradient.add(admitted.gradient)
            entropy.add(torch.tensor(admitted.entropy, dtype=torch.float64))
            sites += 1
        self._coefficients.step(gradient.total())
        mean = float(entropy.total()) / sites
        metrics = {"mean entropy in the first round": mean, **self._metrics}
        metrics["mean entropy in the last round"] = mean
        return Kept(self._coefficients.descent.tensors(), metrics)


class _Gradients:
    """What one round asks each site, and which replies may be added."""

    def __init__(
        self,
        asked: CoefficientsRequest,
        received: Mapping[str, OfOneSite],
        other_params: Mapping[str, Tensor],
        lacking: set[str],
    ) -> None:
        self._asked = asked
        self._usual = encode_coefficients_request(asked)
        self._whole = lambda: encode_coefficients_request(
            asked.with_updates(received, other_params)
        )
        self._lacking = lacking

    def content(self, site: str) -> RecordDict:
        """The coefficients, and the updates to a site that lacks them."""
        return self._whole() if site in self._lacking else self._usual

    def budget(self, _site: str) -> Budget:
        """What a reply may take."""
        return coefficients_layout(len(self._asked.sites), len(self._asked.layers)).budget

    def read(self, site: str, content: RecordDict) -> AdmittedGradient | None:
        """A gradient that may be added; None where the site must be sent the updates first."""
        reply = decode_coefficients(content, len(self._asked.sites), len(self._asked.layers))
        if reply.lacks and site in self._lacking:
            raise RefusedReplyError(
                "it still lacks the updates after it was sent them; is its cache folder writable, "
                "and its disk not full?"
            )
        if reply.lacks:
            self._lacking.add(site)
            return None
        if not bool((reply.gradient.abs() < LIMIT).all()):  # False for NaN too
            raise RefusedReplyError("its gradient is not finite, or beyond 2⁴²")
        if not 0 <= reply.entropy <= _LARGEST_ENTROPY:
            raise RefusedReplyError(f"an entropy of {reply.entropy}")
        self._lacking.discard(site)
        return AdmittedGradient(reply.gradient.double(), reply.entropy)
