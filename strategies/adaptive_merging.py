"""AdaMerging: the sites' updates once, then gradients of a few coefficients, round after round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from flwr.app import RecordDict

from layerweld.errors import RefusedReplyError
from layerweld.merging.adamerging import AdaMerging, LayerCoefficients, merge_by_layer, weighed
from layerweld.merging.one_round import SiteUpdates
from layerweld.transport.coefficients import (
    COEFFICIENTS,
    CoefficientsReply,
    CoefficientsRequest,
    coefficients_layout,
    decode_coefficients,
    encode_coefficients_request,
)
from layerweld.updates.exact_sum import LIMIT, ExactSum
from layerweld.updates.named_tensors import (
    digest_of_sites,
    first_digest,
    site_tensors,
    updates_by_site,
)
from strategies.poll import Request
from strategies.rounds import Kept, MethodRounds, Outcome, Round
from strategies.site_updates import OfOneSite, side_by_side, updates_round

_LARGEST_ENTROPY = 20.0
"""Nats: of a head that is undecided between five hundred million classes."""


class AdaptiveMerging(MethodRounds):
    """Learn one coefficient per site and layer from the entropy of every site's own head.

    Round 0 collects the updates. Every later one sends the coefficients, adds up the gradients
    that the sites reply with (exactly, so that nothing depends on who replies first), and takes
    one step of Adam. The first of these also sends every site all sites' updates; a site that has
    lost them says so and gets them again. Updates, coefficients and Adam's moments are kept.
    """

    _weighed: SiteUpdates  # these two as soon as the updates are there
    _coefficients: LayerCoefficients

    def __post_init__(self) -> None:
        self._own = self.settings.table(AdaMerging)
        self.count = 1 + self._own.rounds
        self._received: Mapping[str, OfOneSite] = {}
        self._lacking: set[str] = set()  # sites that must be sent the updates
        self._metrics: Mapping[str, float] = {}

    def round_at(self, index: int) -> Round[Any]:
        """The updates first, then gradients."""
        if index == 0:
            return updates_round(self.plan, self.cohort, self._collect)
        asked = CoefficientsRequest(
            run=self.cohort.run,
            method=self.method.name,
            round=index,
            layers=self.plan.layer_names,
            sites=self._weighed.sites,
            plan=self.plan.digest,
            chain_digest=self._digest,
            averaged=bool(self.other_params),
            coefficients=self._coefficients.values.float(),
        )
        usual, shape = encode_coefficients_request(asked), tuple(asked.coefficients.shape)

        def content(site: str) -> RecordDict:
            if site not in self._lacking:
                return usual
            whole = asked.with_updates(self._received, self.other_params)
            return encode_coefficients_request(whole)

        budget = coefficients_layout(*shape).budget
        what, read = f"gradient of round {index}", partial(self._read, shape)
        request = Request(COEFFICIENTS, what, content, read, lambda _site: budget)
        return Round(request, self._fold)

    def advance(self, kept: Kept) -> None:
        """The updates are there, or one more step is taken."""
        self._metrics = kept.metrics
        if self._received:
            self._coefficients.descent.restore(kept.tensors)
            return
        self._received = updates_by_site(kept.tensors)
        sites = side_by_side(self.plan, self.cohort, self._received)
        shape = (len(sites.sites), len(self.plan.layer_names))
        first = first_digest(self.plan.digest, self.settings.digest(), self.other_params)
        self._weighed = weighed(self.method, sites, self._own)
        self._digest = digest_of_sites(first, self._received)
        self._coefficients = LayerCoefficients(shape, self._own)

    def outcome(self) -> Outcome:
        """With the coefficients as they are now."""
        values = self._coefficients.values
        merge = merge_by_layer(self._weighed, values, self.plan.layer_names)
        spread = {
            "smallest coefficient": float(values.min()),
            "largest coefficient": float(values.max()),
        }
        merge = replace(merge, metrics={**self._metrics, **spread})
        return self.outcome_of(merge)

    def _collect(self, received: Mapping[str, OfOneSite]) -> Kept:
        self._lacking |= received.keys()
        return Kept(site_tensors(received), {})

    def _fold(self, replies: Iterator[tuple[str, CoefficientsReply]]) -> Kept:
        """Add the gradients up, and take a step."""
        gradient, entropy = ExactSum(tuple(self._coefficients.values.shape)), ExactSum(())
        sites = 0
        for _site, reply in replies:
            gradient.add(reply.gradient.double())
            entropy.add(torch.tensor(reply.entropy, dtype=torch.float64))
            sites += 1
        self._coefficients.step(gradient.total())
        mean = float(entropy.total()) / sites
        metrics = {"mean entropy in the first round": mean, **self._metrics}
        metrics["mean entropy in the last round"] = mean
        return Kept(self._coefficients.descent.tensors(), metrics)

    def _read(
        self, shape: tuple[int, ...], site: str, content: RecordDict
    ) -> CoefficientsReply | None:
        """A gradient that may be added; None where the site must be sent the updates first."""
        reply = decode_coefficients(content, *shape)
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
        return reply
