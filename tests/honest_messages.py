"""One honest message of every kind, how it is read, and what it may take."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import RecordDict
from torch import Tensor

from client.handlers.questions import require_updates_of
from layerweld.merging.fisher import Fisher
from layerweld.statistics.group import GroupAccumulator, ProductForm
from layerweld.transport.chain import (
    decode_question,
    encode_answer,
    encode_question,
    statistics_budget,
)
from layerweld.transport.descent import (
    block_gradients_budget,
    decode_block,
    decode_block_gradients,
    decode_coefficients,
    decode_gradient,
    encode_block,
    encode_block_gradients,
    encode_coefficients,
    encode_gradient,
    gradient_budget,
)
from layerweld.transport.descent_messages import (
    BlockAnswer,
    BlockQuestion,
    CoefficientAnswer,
    CoefficientQuestion,
)
from layerweld.transport.expected import fisher_shapes, statistics_shapes, update_shapes
from layerweld.transport.fisher import encode_fisher, fisher_budget
from layerweld.transport.introduction import BUDGET, encode_introduction
from layerweld.transport.layout import Budget
from layerweld.transport.messages import Answer, ModelToMeasure, Question, Subject
from layerweld.transport.model import decode_model, encode_model
from layerweld.transport.remainder import encode_remainder, remainder_budget
from layerweld.transport.run import decode_run, encode_run
from layerweld.transport.score import BUDGET as SCORE
from layerweld.transport.score import encode_score
from layerweld.transport.shift import decode_shifts, encode_shifts, shifts_budget
from layerweld.transport.updates import encode_updates, updates_budget
from layerweld.updates.update import Update
from server import replies as server_replies
from strategies import site_updates
from strategies.fisher_averaging import FisherAveraging
from tests.stub_sites import (
    FORM,
    NAMES,
    PLAN,
    RUN,
    introduction_of,
    new_chain,
    settings,
    statistics_of,
    updates_of,
)

SITE = NAMES[1]
SUBJECT = Subject(RUN, "train.statistics", "fuzz", "2", SITE)
RANKS = dict(zip(introduction_of(SITE).layers, introduction_of(SITE).ranks, strict=True))
PARAMETERS = {"norm.weight": (4,), "embeddings.weight": (5, 4)}
DENSE = ProductForm(dense=True, with_updates=True)
SHAPES = {s.name: (s.d_out, g.d_in) for g in PLAN.groups for s in g.layers}
QUESTION_BUDGET = Budget(2**22, 512)


def _numbers(shapes: dict[str, Any], seed: int = 0) -> dict[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def _statistics(form: ProductForm) -> tuple[Any, ...]:
    chosen = settings()
    chain = new_chain(chosen)
    chain.form = form
    round_ = chain._new_round(chain.steps[0], None)
    group = PLAN.groups[0]
    if form.dense:
        tokens = torch.randn(1, 20, group.d_in, generator=torch.Generator().manual_seed(5))
        accumulator = GroupAccumulator(group, chosen.merge)
        accumulator.update(tokens, torch.ones(1, 20, dtype=torch.bool))
        statistics = accumulator.statistics(updates_of(SITE), form)
    else:
        statistics = statistics_of(SITE, group.name)
    asked = round_._question
    answer = Answer(SITE, RUN, 0, asked.plan, asked.prefix, (statistics,))
    shapes = statistics_shapes([group], RANKS, form)
    return encode_answer(answer), round_._read, statistics_budget(shapes)


def _updates() -> tuple[RecordDict, Callable[..., Mapping[str, Update] | None], Budget]:
    round_ = site_updates.updates_round(PLAN, new_chain(settings()).cohort, dict)
    return encode_updates(updates_of(SITE)), round_.read, updates_budget(update_shapes(PLAN, RANKS))


def _fisher() -> tuple[RecordDict, Callable[..., dict[str, Tensor]], Budget]:
    method = FisherAveraging(PLAN, new_chain(settings()).cohort, {}, Fisher())
    shapes = fisher_shapes(PLAN)
    sums = {name: torch.ones_like(values) for name, values in _numbers(shapes).items()}
    return encode_fisher(sums), method._read, fisher_budget(shapes)


def _coefficients() -> tuple[RecordDict, Callable[..., CoefficientAnswer], Budget]:
    shape = (len(NAMES), len(PLAN.layer_names))
    answer = CoefficientAnswer(SITE, "d" * 64, False, 0.5, torch.rand(shape))
    return (
        encode_gradient(answer),
        lambda _site, content: decode_gradient(content, shape),
        gradient_budget(shape),
    )


def _block() -> tuple[RecordDict, Callable[..., BlockAnswer], Budget]:
    shapes = {layer: SHAPES[layer] for layer in ("0.q", "0.k")}
    answer = BlockAnswer(SITE, "d" * 64, None, 0.5, _numbers(shapes))
    return (
        encode_block_gradients(answer),
        lambda _site, content: decode_block_gradients(content, shapes),
        block_gradients_budget(shapes),
    )


def replies() -> dict[Any, Any]:
    """By kind: honest content, how it is read, and what it may take."""
    known = replace(introduction_of(SITE), kind="none")
    groups = [group.name for group in PLAN.groups]
    return {
        "handshake": (
            encode_introduction(introduction_of(SITE)),
            server_replies.read_introduction,
            BUDGET,
        ),
        "trained": (
            encode_introduction(introduction_of(SITE)),
            lambda _site, content: server_replies.read_trained(content, known),
            BUDGET,
        ),
        "statistics": _statistics(FORM),
        "dense statistics": _statistics(DENSE),
        "updates": _updates(),
        "fisher": _fisher(),
        "coefficients": _coefficients(),
        "block gradients": _block(),
        "remainder": (
            encode_remainder(_numbers(PARAMETERS)),
            lambda _site, content: server_replies.read_remainder(content, PARAMETERS),
            remainder_budget(PARAMETERS),
        ),
        "metrics": (encode_score(0.75, 12), server_replies.read_score, SCORE),
        "shift": (
            encode_shifts(dict.fromkeys(groups, 0.25)),
            lambda _site, content: decode_shifts(content, groups),
            shifts_budget(groups),
        ),
    }


def questions() -> dict[Any, Any]:
    """Likewise, of what a site is asked."""
    merged = {0: {"0.q": updates_of("ash")["0.q"]}}
    remainder = _numbers(PARAMETERS)
    layers = PLAN.layer_names
    chain = Question(RUN, "com", 1, layers, "p", "x", FORM, True, remainder, merged)
    learnt = CoefficientQuestion(
        RUN, "adamerging", 1, layers, NAMES, "h", True, torch.rand(len(NAMES), len(layers)),
        {name: updates_of(name) for name in NAMES}, remainder,
    )  # fmt: skip
    block = BlockQuestion(
        RUN, "prodistill", 0, 1, layers, "p", "x", True, updates_of("ash"), remainder, merged
    )
    model = ModelToMeasure(RUN, "merged", layers, updates_of("ash"), remainder)

    def fitting(decode: Callable[..., Any], updates: Callable[..., Any]) -> Callable[..., Any]:
        def read(_site: Any, content: RecordDict) -> Any:
            question = decode(content)
            for found in updates(question):
                require_updates_of(PLAN, found)
            return question

        return read

    return {
        "asked: chain": (
            encode_question(chain),
            fitting(decode_question, lambda q: q.merged.values()),
            QUESTION_BUDGET,
        ),
        "asked: coefficients": (
            encode_coefficients(learnt),
            fitting(decode_coefficients, lambda q: q.updates.values()),
            QUESTION_BUDGET,
        ),
        "asked: block": (
            encode_block(block),
            fitting(decode_block, lambda q: [q.updates, *q.merged.values()]),
            QUESTION_BUDGET,
        ),
        "asked: model": (
            encode_model(model),
            fitting(decode_model, lambda q: [q.updates]),
            QUESTION_BUDGET,
        ),
        "asked: run": (
            encode_run(RUN),
            lambda _site, content: decode_run(content),
            QUESTION_BUDGET,
        ),
    }
