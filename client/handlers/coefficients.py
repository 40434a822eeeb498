"""How sure a site's own head is of its samples, and the gradient of that by every coefficient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from client.handlers.merged_prefix import another_plan
from client.state import SiteState
from client.store import SiteStore
from layerweld.errors import RefusedReplyError
from layerweld.merging.adamerging import AdaMerging, mean_entropy, weighed
from layerweld.merging.method import Method
from layerweld.merging.one_round import SiteUpdates
from layerweld.model.base_model import device_named
from layerweld.model.collect import ReplayableModel
from layerweld.model.weighted_layers import Addition, additions, weighted
from layerweld.settings.methods import method_named
from layerweld.transport.coefficients import CoefficientsReply, CoefficientsRequest
from layerweld.updates.named_tensors import digest_of_sites, first_digest


def reply_to(state: SiteState, request: CoefficientsRequest) -> CoefficientsReply:
    """The gradient that a request asks for, or that the site lacks the updates to compute it.

    Raises:
        RefusedReplyError: the request's plan is not this site's, or the updates that came are not
            those of the request's hash.
    """
    plan = state.plan.restricted_to(request.layers)
    if plan.digest != request.plan:
        raise another_plan(request.plan, plan.digest)
    store = state.store(request.method)
    if request.updates:
        _check(state, request)
        if request.averaged:
            store.save_other_params(request.other_params)
        store.save_updates(request.chain_digest, request.updates)
    other_params = store.load_other_params() if request.averaged else {}
    gains = _gains_of(state, request, store)
    if other_params is None or gains is None:
        return CoefficientsReply(lacks=True)
    with state.with_other_params(other_params):
        entropy, gradient = _entropy_and_gradient(state, request, gains)
    return CoefficientsReply(False, entropy, gradient)


def _check(state: SiteState, request: CoefficientsRequest) -> None:
    first = first_digest(request.plan, state.settings.digest(), request.other_params)
    received = digest_of_sites(first, request.updates)
    if received != request.chain_digest:
        raise RefusedReplyError(
            f"the server weighs updates of hash {request.chain_digest[:12]}, but sent "
            f"{received[:12]}: do base model, settings and versions agree?"
        )


@dataclass(frozen=True)
class _Held:
    """All sites' updates, known by their hash; sites of one process share what is made of them."""

    digest: str
    method: Method
    layers: tuple[str, ...]
    store: SiteStore = field(compare=False)


class _LacksUpdates(Exception):
    """An exception and not a value: the next message may bring them, so it must not be cached."""


def _gains_of(
    state: SiteState, request: CoefficientsRequest, store: SiteStore
) -> Mapping[str, Addition] | None:
    method = method_named(request.method, state.settings)
    held = _Held(request.chain_digest, method, request.layers, store)
    device = device_named(state.settings.calibration.device)
    try:
        return _gains(held, state.settings.table(AdaMerging), device)
    except _LacksUpdates:
        return None


@lru_cache(maxsize=1)
def _gains(held: _Held, settings: AdaMerging, device: torch.device) -> Mapping[str, Addition]:
    by_site = held.store.load_updates(held.digest)
    if by_site is None:
        raise _LacksUpdates
    sites = SiteUpdates.side_by_side(dict.fromkeys(by_site, 1), by_site, held.layers)
    return additions(weighed(held.method, sites, settings), device)


def _entropy_and_gradient(
    state: SiteState, request: CoefficientsRequest, gains: Mapping[str, Addition]
) -> tuple[float, Tensor]:
    """Mean entropy over the round's samples, and its gradient by the coefficients."""
    settings = state.settings.table(AdaMerging)
    # One seed per round: no two rounds of any two runs of small seeds draw alike.
    dataset = state.data.drawn(settings.samples, (settings.seed << 32) + request.round)
    batches = state.model_inputs(dataset)
    model = ReplayableModel(state.base.backbone, state.plan.restricted_to(request.layers))
    coefficients = request.coefficients.to(next(model.backbone.parameters()).device)
    head = state.head.load().to(coefficients.device)
    entropy, gradient = 0.0, torch.zeros_like(coefficients)
    for batch in batches:
        free = coefficients.clone().requires_grad_()
        columns = {layer: free[:, i] for i, layer in enumerate(request.layers)}
        with weighted(model.layers, gains, columns):
            hidden = model.backbone(**batch).last_hidden_state
        logits = head(hidden, batch.get("attention_mask"))
        loss = mean_entropy(logits) * (len(logits) / len(dataset))
        gradient += torch.autograd.grad(loss, free)[0]
        entropy += float(loss.detach())
    return entropy, gradient.cpu()
