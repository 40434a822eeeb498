"""The gradient of a head's entropy by learnt coefficients, one for each site and layer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from layerweld.transport.arrays import from_arrays, read_arrays, to_arrays
from layerweld.transport.identity import (
    ABOUT,
    IN_REQUEST,
    Identity,
    reply_layout,
    request_id,
    request_record,
    require_sent_identity,
)
from layerweld.transport.layout import Entries, Flag, Layout, Many, Real, Text, Whole
from layerweld.transport.step_context import LAYERS
from layerweld.transport.untrusted import packed, read, refusing_malformed, unpacked
from layerweld.updates.named_tensors import site_tensors, updates_by_site
from layerweld.updates.update import Update

COEFFICIENTS = "train.entropy"
"""Flower's type of the message."""

UpdatesBySite = Mapping[str, Mapping[str, Update]]
"""``ΔW`` by site, then by layer."""

_COEFFICIENTS, _GRADIENT = "coefficients", "gradient"
_UPDATES, _OTHER_PARAMS = "updates", "other-params"
_MOST_SITES, _MOST_ROUNDS = 2**15, 2**32
_OWN: Entries = {
    "method": Text(),
    "round": Whole(high=_MOST_ROUNDS),
    "layers": LAYERS,
    "sites": Many(Text(), _MOST_SITES),
    "averaged": Flag(),
}
_REQUEST = Layout(
    {ABOUT: {**IN_REQUEST, **_OWN}}, {_COEFFICIENTS: None, _UPDATES: None, _OTHER_PARAMS: None}
)


@dataclass(frozen=True)
class CoefficientsRequest:
    """The server's request for the gradient of a site's entropy by all coefficients.

    Attributes:
        run: identifies the run; sites keep the updates under it.
        method: name of the method being run.
        round: number of the round, from 1; with a seed it decides which samples are drawn.
        layers: columns of the coefficients.
        sites: rows of the coefficients.
        plan: digest of the plan of these layers.
        chain_digest: hash of the updates and the other parameters that a site must hold to reply.
        averaged: whether other parameters are among what it must hold.
        coefficients: ``(sites, layers)``, float32.
        updates: of all sites; only where the site may lack them.
        other_params: the averaged other parameters of full fine-tuning; likewise.
    """

    run: str
    method: str
    round: int
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    plan: str
    chain_digest: str
    averaged: bool
    coefficients: Tensor
    updates: UpdatesBySite = field(default_factory=dict)
    other_params: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def identity(self) -> Identity:
        """What the reply must be about; what a site may lack is no part of it."""
        numbers = hashlib.sha256(self.coefficients.contiguous().numpy().tobytes()).hexdigest()
        decides = (self.method, self.round, self.layers, self.sites, self.averaged, numbers)
        return Identity(self.run, request_id(COEFFICIENTS, *decides), self.plan, self.chain_digest)

    def with_updates(
        self, updates: UpdatesBySite, other_params: Mapping[str, Tensor]
    ) -> CoefficientsRequest:
        """The same request to a site that may lack them."""
        return replace(self, updates=updates, other_params=other_params)


@dataclass(frozen=True)
class CoefficientsReply:
    """A site's reply to one :class:`CoefficientsRequest`.

    Attributes:
        lacks: whether the site must be sent the updates first; the rest is empty then.
        entropy: mean entropy of the head's predictions over the round's samples, in nats.
        gradient: of it by the coefficients, ``(sites, layers)``, float32.
    """

    lacks: bool
    entropy: float = 0.0
    gradient: Tensor = field(default_factory=lambda: torch.empty(0))


def encode_coefficients_request(request: CoefficientsRequest) -> RecordDict:
    """A request, with the updates where it carries them."""
    return RecordDict(
        {
            ABOUT: request_record(request.identity, **packed(request, _OWN)),
            _COEFFICIENTS: to_arrays({_COEFFICIENTS: request.coefficients}),
            _UPDATES: to_arrays(site_tensors(request.updates)),
            _OTHER_PARAMS: to_arrays(request.other_params),
        }
    )


def decode_coefficients_request(content: RecordDict) -> CoefficientsRequest:
    """Inverse of :func:`encode_coefficients_request`; the updates may not fit the model.

    Raises:
        RefusedReplyError: it is no such request.
    """
    with refusing_malformed():
        _REQUEST.check(content)
        record = content.config_records[ABOUT]
        own = unpacked(record, {**IN_REQUEST, **_OWN}.keys() - {"request"})
        shape = (len(own["sites"]), len(own["layers"]))
        sent = read_arrays(content.array_records[_COEFFICIENTS], {_COEFFICIENTS: shape})
        request = CoefficientsRequest(
            **own,
            coefficients=sent[_COEFFICIENTS],
            updates=updates_by_site(from_arrays(content.array_records[_UPDATES])),
            other_params=from_arrays(content.array_records[_OTHER_PARAMS]),
        )
        require_sent_identity(content, request.identity)
        return request


def encode_coefficients(reply: CoefficientsReply) -> RecordDict:
    """A site's gradient, or that it lacks the updates."""
    record = ConfigRecord({"lacks": reply.lacks, "entropy": reply.entropy})
    gradient = {} if reply.lacks else {_GRADIENT: reply.gradient}
    return RecordDict({ABOUT: record, _GRADIENT: to_arrays(gradient)})


def coefficients_layout(sites: int, layers: int) -> Layout:
    """All that a reply with a gradient may hold: one number for each site and layer."""
    entries: Entries = {"lacks": Flag(), "entropy": Real()}
    return reply_layout(Layout({ABOUT: entries}, {_GRADIENT: {_GRADIENT: (sites, layers)}}))


def decode_coefficients(content: RecordDict, sites: int, layers: int) -> CoefficientsReply:
    """Inverse of :func:`encode_coefficients`, for a reply that is not trusted.

    Raises:
        RefusedReplyError: a field is missing, unexpected or has another type, or the gradient has
            another shape.
    """
    with refusing_malformed():
        record = content.config_records[ABOUT]
        layout = coefficients_layout(sites, layers)
        if read(record, "lacks", bool):
            layout.without_arrays.check(content)
            return CoefficientsReply(lacks=True)
        gradient = layout.read(content)[_GRADIENT][_GRADIENT]
        return CoefficientsReply(False, read(record, "entropy", float), gradient)
