"""Every kind of reply: what honest sites send is what the server allows, to the byte."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.group import GroupAccumulator, ProductForm
from layerweld.transport.arrays import Shapes, num_bytes
from layerweld.transport.block_gradients import (
    BlockReply,
    block_gradients_layout,
    decode_block_gradients,
    encode_block_gradients,
)
from layerweld.transport.coefficients import (
    CoefficientsReply,
    coefficients_layout,
    decode_coefficients,
    encode_coefficients,
)
from layerweld.transport.evaluation import EVALUATION_LAYOUT, decode_accuracy, encode_accuracy
from layerweld.transport.fisher import FisherSums, decode_fisher, encode_fisher, fisher_layout
from layerweld.transport.identity import Identity, with_identity
from layerweld.transport.layout import Layout
from layerweld.transport.other_params import (
    decode_other_params,
    encode_other_params,
    other_params_bytes,
    other_params_layout,
)
from layerweld.transport.shift import decode_shifts, encode_shifts, shifts_layout
from layerweld.transport.site_info import decode_site_info, encode_site_info
from layerweld.transport.statistics import (
    StatisticsReply,
    decode_statistics,
    encode_statistics,
    statistics_layout,
)
from layerweld.transport.updates import decode_updates, encode_updates, updates_layout
from layerweld.updates.update import DenseUpdate
from tests.stub_sites import NAMES, PLAN, site_info_of, updates_of

IDENTITY = Identity("run", "id", node="1", site="ash")
GROUPS = PLAN.groups[:2]
FORMS = [
    ProductForm(dense, with_updates) for dense in (False, True) for with_updates in (False, True)
]


def equal(one: Any, other: Any) -> bool:
    """Of values with tensors in them."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if is_dataclass(one):
        names = [field.name for field in fields(one)]
        return type(one) is type(other) and all(
            equal(getattr(one, name), getattr(other, name)) for name in names
        )
    return bool(one == other)


def numbers(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.rand(shape) for name, shape in shapes.items()}


SHAPES = dict(list(PLAN.shapes.items())[:3])
FISHER = FisherSums(numbers(PLAN.shapes), numbers(PLAN.shapes))
WHOLE = {layer: DenseUpdate(torch.rand(shape)) for layer, shape in PLAN.shapes.items()}
OTHERS = numbers({"norm.weight": (4,), "embeddings.weight": (5, 4), "scale": ()})
RANKS = site_info_of("ash").rank_of
REPLIES: dict[str, tuple[Any, Callable[[Any], RecordDict], Layout, Callable[[Any], Any]]] = {
    "updates": (
        updates_of("ash"),
        encode_updates,
        updates_layout(PLAN, RANKS),
        lambda content: decode_updates(content, PLAN, RANKS),
    ),
    "whole updates": (
        WHOLE,
        encode_updates,
        updates_layout(PLAN, dict.fromkeys(WHOLE, 0)),
        lambda content: decode_updates(content, PLAN, dict.fromkeys(WHOLE, 0)),
    ),
    "Fisher sums": (
        FISHER,
        encode_fisher,
        fisher_layout(PLAN),
        lambda content: decode_fisher(content, PLAN),
    ),
    "coefficients": (
        CoefficientsReply(False, 0.5, torch.rand(3, 5)),
        encode_coefficients,
        coefficients_layout(3, 5),
        lambda content: decode_coefficients(content, 3, 5),
    ),
    "block gradients": (
        BlockReply(None, 0.5, numbers(SHAPES)),
        encode_block_gradients,
        block_gradients_layout(SHAPES),
        lambda content: decode_block_gradients(content, SHAPES),
    ),
    "other parameters": (
        OTHERS,
        encode_other_params,
        other_params_layout({name: tuple(values.shape) for name, values in OTHERS.items()}),
        lambda content: decode_other_params(
            content, {name: tuple(values.shape) for name, values in OTHERS.items()}
        ),
    ),
    "shifts": (
        {"0.in": 0.5, "1.in": 0.0},
        encode_shifts,
        shifts_layout(["0.in", "1.in"]),
        lambda content: decode_shifts(content, ["0.in", "1.in"]),
    ),
    "accuracy": (
        (0.25, 12),
        lambda value: encode_accuracy(*value),
        EVALUATION_LAYOUT,
        decode_accuracy,
    ),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_read_as_it_was_sent_and_is_as_large_as_its_layout_says(name: str) -> None:
    value, encode, layout, decode = REPLIES[name]
    content = with_identity(encode(value), IDENTITY)
    layout.check(content)
    assert equal(decode(content), value)
    assert layout.num_bytes == num_bytes(content)
    assert name != "other parameters" or other_params_bytes(value) == num_bytes(content)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("site", NAMES)
def test_statistics_are_read_as_they_were_sent_whatever_their_form(
    site: str, form: ProductForm
) -> None:
    ranks, tokens = site_info_of(site).rank_of, torch.randn(1, 20, 4)
    measured = []
    for group in GROUPS:
        accumulator = GroupAccumulator(group, MergeSettings())
        accumulator.update(tokens[..., : group.d_in], torch.ones(1, 20, dtype=torch.bool))
        measured.append(accumulator.statistics(updates_of(site), form))
    sent = StatisticsReply(tuple(measured))
    content = with_identity(encode_statistics(sent), IDENTITY)
    layout = statistics_layout(GROUPS, ranks, form)
    layout.check(content)
    assert layout.num_bytes == num_bytes(content)
    assert layout.num_bytes == sum(statistics_layout([g], ranks, form).num_bytes for g in GROUPS)
    assert equal(decode_statistics(content, GROUPS, ranks, form), sent)
    with pytest.raises(RefusedReplyError):
        decode_statistics(content, GROUPS[::-1], ranks, form)


@pytest.mark.parametrize("need_from", [-1, 0, 7])
def test_a_site_that_lacks_something_sends_nothing_else(need_from: int) -> None:
    ranks, form = site_info_of("ash").rank_of, FORMS[0]
    content = with_identity(encode_statistics(StatisticsReply(need_from=need_from)), IDENTITY)
    assert decode_statistics(content, GROUPS, ranks, form).need_from == need_from
    content = with_identity(encode_block_gradients(BlockReply(need_from)), IDENTITY)
    assert decode_block_gradients(content, SHAPES).need_from == need_from
    along = with_identity(
        encode_block_gradients(BlockReply(need_from, 0.5, numbers(SHAPES))), IDENTITY
    )
    with pytest.raises(RefusedReplyError, match="unexpected"):
        decode_block_gradients(along, SHAPES)


def test_site_info_is_read_as_it_was_sent() -> None:
    info = site_info_of("ash")
    assert decode_site_info(with_identity(encode_site_info(info), IDENTITY)) == info
