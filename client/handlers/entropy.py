"""How sure a site's own head is of its rows, and the gradient of that by every coefficient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from client.state import SiteState
from client.store import SiteStore
from layerweld.errors import RefusedReplyError
from layerweld.merging.adamerging import AdaMerging, mean_entropy, weighed
from layerweld.merging.one_round import SiteUpdates
from layerweld.model.base_model import device_named
from layerweld.model.collect import ReplayableModel
from layerweld.model.weighted_layers import Addition, additions, weighted
from layerweld.transport.descent_messages import CoefficientAnswer, CoefficientQuestion
from layerweld.updates.digest import first_prefix, prefix_of_sites


def answer(state: SiteState, question: CoefficientQuestion) -> CoefficientAnswer:
    """The gradient that a question asks for, or that the site lacks the updates to compute it.

    Raises:
        RefusedReplyError: the updates that came are not those of the question's hash.
    """
    store = state.store(question.method)
    if question.updates:
        _check(state, question)
        if question.averaged:
            store.save_remainder(question.remainder)
        store.save_updates(question.held, question.updates)
    remainder = store.load_remainder() if question.averaged else {}
    gains = _gains_of(state, question, store)
    if remainder is None or gains is None:
        return CoefficientAnswer(state.site.name, question.digest, True, 0.0, torch.empty(0))
    with state.with_remainder(remainder):
        entropy, gradient = _entropy_and_gradient(state, question, gains)
    return CoefficientAnswer(state.site.name, question.digest, False, entropy, gradient)


def _check(state: SiteState, question: CoefficientQuestion) -> None:
    plan = state.plan.restricted_to(question.layers)
    first = first_prefix(plan.digest, state.settings.digest(), question.remainder)
    found = prefix_of_sites(first, question.updates)
    if found != question.held:
        raise RefusedReplyError(
            f"the server weighs updates of hash {question.held[:12]}, but sent {found[:12]}: do "
            f"base model, settings and versions agree?"
        )


@dataclass(frozen=True)
class _Held:
    """All sites' updates, known by their hash; sites of one process share what is made of them."""

    digest: str
    method: str
    layers: tuple[str, ...]
    store: SiteStore = field(compare=False)


class _LacksUpdates(Exception):
    """An exception and not a value: the next message may bring them, so it must not be cached."""


def _gains_of(
    state: SiteState, question: CoefficientQuestion, store: SiteStore
) -> Mapping[str, Addition] | None:
    held = _Held(question.held, question.method, question.layers, store)
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
    names = sorted(by_site)
    layers = {
        layer: {site: by_site[site][layer] for site in names if layer in by_site[site]}
        for layer in held.layers
    }
    sites = SiteUpdates(dict.fromkeys(names, 1), {k: of for k, of in layers.items() if of})
    return additions(weighed(held.method, sites, settings), device)


def _entropy_and_gradient(
    state: SiteState, question: CoefficientQuestion, gains: Mapping[str, Addition]
) -> tuple[float, Tensor]:
    """Mean entropy over the round's rows, and its gradient by the coefficients."""
    settings = state.settings.table(AdaMerging)
    # One seed per round: no two rounds of any two runs of small seeds draw alike.
    rows = state.data.drawn(settings.rows, (settings.seed << 32) + question.round)
    batches = state.model_inputs(rows)
    model = ReplayableModel(state.base.backbone, state.plan.restricted_to(question.layers))
    coefficients = question.coefficients.to(next(model.backbone.parameters()).device)
    head = state.head.to(coefficients.device)
    entropy, gradient = 0.0, torch.zeros_like(coefficients)
    for batch in batches:
        free = coefficients.clone().requires_grad_()
        columns = {layer: free[:, i] for i, layer in enumerate(question.layers)}
        with weighted(model.layers, gains, columns):
            hidden = model.backbone(**batch).last_hidden_state
        logits = head(hidden, batch.get("attention_mask"))
        loss = mean_entropy(logits) * (len(logits) / len(rows))
        gradient += torch.autograd.grad(loss, free)[0]
        entropy += float(loss.detach())
    return entropy, gradient.cpu()
