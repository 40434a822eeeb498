"""One honest message of every kind, how it is read, and what it may take."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from flwr.app import RecordDict
from torch import Tensor

from client.handlers.requests import require_updates_of
from layerweld.merging.registry import METHODS
from layerweld.statistics.group import GroupAccumulator, ProductForm
from layerweld.transport.block_gradients import (
    BlockReply,
    BlockRequest,
    block_gradients_layout,
    decode_block_gradients,
    decode_block_request,
    encode_block_gradients,
    encode_block_request,
)
from layerweld.transport.coefficients import (
    CoefficientsReply,
    CoefficientsRequest,
    coefficients_layout,
    decode_coefficients,
    decode_coefficients_request,
    encode_coefficients,
    encode_coefficients_request,
)
from layerweld.transport.evaluation import (
    EVALUATION,
    EVALUATION_LAYOUT,
    decode_accuracy,
    encode_accuracy,
)
from layerweld.transport.fisher import FisherSums, encode_fisher, fisher_layout
from layerweld.transport.identity import Identity, encode_plain, identity_of
from layerweld.transport.layout import Budget
from layerweld.transport.model import ModelToMeasure, decode_model, encode_model
from layerweld.transport.other_params import encode_other_params, other_params_layout
from layerweld.transport.shift import decode_shifts, encode_shifts, shifts_layout
from layerweld.transport.site_info import (
    HANDSHAKE,
    SITE_INFO_BUDGET,
    decode_site_info,
    encode_site_info,
)
from layerweld.transport.statistics import (
    StatisticsReply,
    StatisticsRequest,
    decode_statistics_request,
    encode_statistics,
    encode_statistics_request,
    statistics_layout,
)
from layerweld.transport.step_context import StepContext
from layerweld.transport.updates import encode_updates, updates_layout
from server.handshake import read_trained
from strategies import site_updates
from strategies.fisher_averaging import AdmittedSums, FisherAveraging
from strategies.other_params import OtherParams
from strategies.site_updates import OfOneSite
from tests.stub_sites import (
    FORM,
    NAMES,
    PLAN,
    RUN,
    new_chain,
    settings,
    site_info_of,
    statistics_of,
    updates_of,
)

SITE = NAMES[1]
IDENTITY = Identity(RUN, "fuzz", node="2", site=SITE)
RANKS = site_info_of(SITE).rank_of
PARAMETERS = {"norm.weight": (4,), "embeddings.weight": (5, 4)}
DENSE = ProductForm(dense=True, with_updates=True)
REQUEST_BUDGET = Budget(2**22, 512)


def _numbers(shapes: dict[str, Any], seed: int = 0) -> dict[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def _statistics(form: ProductForm) -> tuple[RecordDict, Callable[..., Any], Budget]:
    dense = {"products": "dense", "anchor": "mean"} if form.dense else {}
    chosen = settings(merge={"influence": False, **dense})
    rounds = new_chain(chosen).rounds
    group = PLAN.groups[0]
    if form.dense:
        tokens = torch.randn(1, 20, group.d_in, generator=torch.Generator().manual_seed(5))
        accumulator = GroupAccumulator(group, chosen.merge)
        accumulator.update(tokens, torch.ones(1, 20, dtype=torch.bool))
        statistics = accumulator.statistics(updates_of(SITE), form)
    else:
        statistics = statistics_of(SITE, group.name)
    content = encode_statistics(StatisticsReply((statistics,)))
    return content, rounds.round_at(0).request.read, statistics_layout([group], RANKS, form).budget


def _updates() -> tuple[RecordDict, Callable[..., OfOneSite | None], Budget]:
    round_ = site_updates.updates_round(PLAN, new_chain(settings()).cohort, lambda _: None)
    return encode_updates(updates_of(SITE)), round_.request.read, updates_layout(PLAN, RANKS).budget


def _fisher() -> tuple[RecordDict, Callable[..., AdmittedSums], Budget]:
    method = FisherAveraging(METHODS["fisher"], PLAN, new_chain(settings()).cohort, settings(), {})
    ones = {layer: torch.ones(shape) for layer, shape in PLAN.shapes.items()}
    return encode_fisher(FisherSums(ones, ones)), method._read, fisher_layout(PLAN).budget


def _other_params() -> tuple[RecordDict, Callable[..., Mapping[str, Tensor] | None], Budget]:
    rounds = OtherParams(new_chain(settings()).cohort, PARAMETERS, {SITE})
    budget = other_params_layout(PARAMETERS).budget
    return encode_other_params(_numbers(PARAMETERS)), rounds.round_at(0).request.read, budget


def _coefficients() -> tuple[RecordDict, Callable[..., CoefficientsReply], Budget]:
    shape = (len(NAMES), len(PLAN.layer_names))
    return (
        encode_coefficients(CoefficientsReply(False, 0.5, torch.rand(shape))),
        lambda _site, content: decode_coefficients(content, *shape),
        coefficients_layout(*shape).budget,
    )


def _block() -> tuple[RecordDict, Callable[..., BlockReply], Budget]:
    shapes = {layer: PLAN.shapes[layer] for layer in ("0.q", "0.k")}
    return (
        encode_block_gradients(BlockReply(None, 0.5, _numbers(shapes))),
        lambda _site, content: decode_block_gradients(content, shapes),
        block_gradients_layout(shapes).budget,
    )


def replies() -> dict[Any, Any]:
    """By kind: honest content, how it is read, and what it may take."""
    known = replace(site_info_of(SITE), kind="none")
    groups = [group.name for group in PLAN.groups]
    return {
        "handshake": (
            encode_site_info(site_info_of(SITE)),
            lambda _site, content: decode_site_info(content),
            SITE_INFO_BUDGET,
        ),
        "trained": (
            encode_site_info(site_info_of(SITE)),
            lambda _site, content: read_trained(content, known),
            SITE_INFO_BUDGET,
        ),
        "statistics": _statistics(FORM),
        "dense statistics": _statistics(DENSE),
        "updates": _updates(),
        "fisher": _fisher(),
        "coefficients": _coefficients(),
        "block gradients": _block(),
        "other parameters": _other_params(),
        "metrics": (
            encode_accuracy(0.75, 12),
            lambda _site, content: decode_accuracy(content),
            EVALUATION_LAYOUT.budget,
        ),
        "shift": (
            encode_shifts(dict.fromkeys(groups, 0.25)),
            lambda _site, content: decode_shifts(content, groups),
            shifts_layout(groups).budget,
        ),
    }


def requests() -> dict[Any, Any]:
    """Likewise, of what a site is asked."""
    merged = {0: {"0.q": updates_of("ash")["0.q"]}}
    other_params = _numbers(PARAMETERS)
    layers = PLAN.layer_names
    context = StepContext(RUN, "com", 1, layers, "p", "x", True, other_params, merged)
    learnt = CoefficientsRequest(
        RUN, "adamerging", 1, layers, NAMES, "p", "h", True, torch.rand(len(NAMES), len(layers)),
        {name: updates_of(name) for name in NAMES}, other_params,
    )  # fmt: skip
    model = ModelToMeasure(RUN, "merged", layers, updates_of("ash"), other_params)

    def fitting(decode: Any, updates: Callable[..., Any]) -> Callable[..., Any]:
        def read(_site: Any, content: RecordDict) -> Any:
            request = decode(content)
            for found in updates(request):
                require_updates_of(PLAN, found)
            return request

        return read

    return {
        "asked: chain": (
            encode_statistics_request(StatisticsRequest(context, FORM)),
            fitting(decode_statistics_request, lambda request: request.context.merged.values()),
            REQUEST_BUDGET,
        ),
        "asked: coefficients": (
            encode_coefficients_request(learnt),
            fitting(decode_coefficients_request, lambda request: request.updates.values()),
            REQUEST_BUDGET,
        ),
        "asked: block": (
            encode_block_request(BlockRequest(context, 1, updates_of("ash"))),
            fitting(
                decode_block_request,
                lambda request: [request.updates, *request.context.merged.values()],
            ),
            REQUEST_BUDGET,
        ),
        "asked: model": (
            encode_model(EVALUATION, model),
            fitting(partial(decode_model, EVALUATION), lambda request: [request.updates]),
            REQUEST_BUDGET,
        ),
        "asked: plain": (
            encode_plain(HANDSHAKE, RUN),
            lambda _site, content: identity_of(content),
            REQUEST_BUDGET,
        ),
    }
