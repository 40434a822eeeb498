"""The messages of learnt coefficients as Flower records, and back."""

from __future__ import annotations

import torch
from flwr.app import ConfigRecord, RecordDict

from layerweld.transport.arrays import from_arrays, read_arrays, to_arrays
from layerweld.transport.descent_messages import (
    BlockAnswer,
    BlockQuestion,
    CoefficientAnswer,
    CoefficientQuestion,
)
from layerweld.transport.layout import (
    Budget,
    Entries,
    Flag,
    Layout,
    Many,
    Real,
    Shapes,
    Text,
    Whole,
)
from layerweld.transport.run import ABOUT
from layerweld.transport.subject import reply_layout
from layerweld.transport.untrusted import read, read_list, refusing_malformed
from layerweld.transport.updates import all_updates, all_updates_by_site
from layerweld.updates.named_tensors import site_tensors, update_tensors

_COEFFICIENTS, _UPDATES, _REMAINDER = "coefficients", "updates", "remainder"
_GRADIENT, _MERGED = "gradient", "merged"
_MOST_LAYERS, _MOST_SITES, _MOST_ROUNDS = 2**15, 2**15, 2**32
_COEFFICIENT_QUESTION = Layout(
    {
        ABOUT: {
            **dict.fromkeys(("run", "method", "held"), Text()),
            "round": Whole(high=_MOST_ROUNDS),
            "layers": Many(Text(300), _MOST_LAYERS),
            "sites": Many(Text(), _MOST_SITES),
            "averaged": Flag(),
        }
    },
    {_COEFFICIENTS: None, _UPDATES: None, _REMAINDER: None},
)
_COEFFICIENT_ANSWER: Entries = {
    "site": Text(),
    "question": Text(),
    "lacks": Flag(),
    "entropy": Real(),
}
_BLOCK_QUESTION = Layout(
    {
        ABOUT: {
            **dict.fromkeys(("run", "method", "plan", "prefix"), Text()),
            "step": Whole(high=2**16),
            "round": Whole(high=_MOST_ROUNDS),
            "layers": Many(Text(300), _MOST_LAYERS),
            "averaged": Flag(),
        }
    },
    {_UPDATES: None, _MERGED: None, _REMAINDER: None},
)
_BLOCK_ANSWER: Entries = {
    "site": Text(),
    "question": Text(),
    "lacks": Flag(),
    "need-from": Whole(-1, 2**16),
    "distance": Real(),
}


def encode_coefficients(question: CoefficientQuestion) -> RecordDict:
    """A question, with the updates where it carries them."""
    about = ConfigRecord(
        {
            "run": question.run,
            "method": question.method,
            "round": question.round,
            "layers": list(question.layers),
            "sites": list(question.sites),
            "held": question.held,
            "averaged": question.averaged,
        }
    )
    return RecordDict(
        {
            ABOUT: about,
            _COEFFICIENTS: to_arrays({_COEFFICIENTS: question.coefficients}),
            _UPDATES: to_arrays(site_tensors(question.updates)),
            _REMAINDER: to_arrays(question.remainder),
        }
    )


def decode_coefficients(content: RecordDict) -> CoefficientQuestion:
    """Inverse of :func:`encode_coefficients`; whether the updates fit the model is not looked at.

    Raises:
        RefusedReplyError: it is no such question.
    """
    with refusing_malformed():
        _COEFFICIENT_QUESTION.check(content)
        about = content.config_records[ABOUT]
        layers, sites = read_list(about, "layers", str), read_list(about, "sites", str)
        shape = (len(sites), len(layers))
        sent = read_arrays(content.array_records[_COEFFICIENTS], {_COEFFICIENTS: shape})
        return CoefficientQuestion(
            run=read(about, "run", str),
            method=read(about, "method", str),
            round=read(about, "round", int),
            layers=tuple(layers),
            sites=tuple(sites),
            held=read(about, "held", str),
            averaged=read(about, "averaged", bool),
            coefficients=sent[_COEFFICIENTS],
            updates=all_updates_by_site(from_arrays(content.array_records[_UPDATES])),
            remainder=from_arrays(content.array_records[_REMAINDER]),
        )


def encode_gradient(answer: CoefficientAnswer) -> RecordDict:
    """A site's gradient, or that it lacks the updates."""
    about = ConfigRecord(
        {
            "site": answer.site,
            "question": answer.question,
            "lacks": answer.lacks,
            "entropy": answer.entropy,
        }
    )
    gradient = {} if answer.lacks else {_GRADIENT: answer.gradient}
    return RecordDict({ABOUT: about, _GRADIENT: to_arrays(gradient)})


def gradient_budget(shape: tuple[int, int]) -> Budget:
    """What an answer may take."""
    return _gradient({_GRADIENT: shape}).budget


def decode_gradient(content: RecordDict, shape: tuple[int, int]) -> CoefficientAnswer:
    """Inverse of :func:`encode_gradient`, for an answer that nobody vouches for.

    Args:
        content: of the reply.
        shape: sites and layers.

    Raises:
        RefusedReplyError: a field is missing, unexpected or has another type, or the gradient has
            another shape.
    """
    with refusing_malformed():
        about = content.config_records[ABOUT]
        lacks = read(about, "lacks", bool)
        expected: Shapes = {} if lacks else {_GRADIENT: shape}
        _gradient(expected).check(content)
        arrays = read_arrays(content.array_records[_GRADIENT], expected)
        return CoefficientAnswer(
            site=read(about, "site", str),
            question=read(about, "question", str),
            lacks=lacks,
            entropy=read(about, "entropy", float),
            gradient=arrays.get(_GRADIENT, torch.empty(0)),
        )


def _gradient(shapes: Shapes) -> Layout:
    return reply_layout(Layout({ABOUT: _COEFFICIENT_ANSWER}, {_GRADIENT: shapes}))


def encode_block(question: BlockQuestion) -> RecordDict:
    """A question about one block, with what the site may lack of what was merged before."""
    about = ConfigRecord(
        {
            "run": question.run,
            "method": question.method,
            "step": question.step,
            "round": question.round,
            "layers": list(question.layers),
            "plan": question.plan,
            "prefix": question.prefix,
            "averaged": question.averaged,
        }
    )
    merged = {str(step): updates for step, updates in question.merged.items()}
    return RecordDict(
        {
            ABOUT: about,
            _UPDATES: to_arrays(update_tensors(question.updates)),
            _MERGED: to_arrays(site_tensors(merged)),
            _REMAINDER: to_arrays(question.remainder),
        }
    )


def decode_block(content: RecordDict) -> BlockQuestion:
    """Inverse of :func:`encode_block`; whether the updates fit the model is not looked at.

    Raises:
        RefusedReplyError: it is no such question.
    """
    with refusing_malformed():
        _BLOCK_QUESTION.check(content)
        about = content.config_records[ABOUT]
        merged = all_updates_by_site(from_arrays(content.array_records[_MERGED]))
        return BlockQuestion(
            run=read(about, "run", str),
            method=read(about, "method", str),
            step=read(about, "step", int),
            round=read(about, "round", int),
            layers=tuple(read_list(about, "layers", str)),
            plan=read(about, "plan", str),
            prefix=read(about, "prefix", str),
            averaged=read(about, "averaged", bool),
            updates=all_updates(from_arrays(content.array_records[_UPDATES])),
            remainder=from_arrays(content.array_records[_REMAINDER]),
            merged={int(step): updates for step, updates in merged.items()},
        )


def encode_block_gradients(answer: BlockAnswer) -> RecordDict:
    """A site's gradients of one block, or from which step on it must catch up."""
    about = ConfigRecord(
        {
            "site": answer.site,
            "question": answer.question,
            "lacks": answer.need_from is not None,
            "need-from": answer.need_from or 0,
            "distance": answer.distance,
        }
    )
    return RecordDict({ABOUT: about, _GRADIENT: to_arrays(answer.gradients)})


def block_gradients_budget(shapes: Shapes) -> Budget:
    """What an answer may take."""
    return _block_gradients(shapes).budget


def decode_block_gradients(content: RecordDict, shapes: Shapes) -> BlockAnswer:
    """Inverse of :func:`encode_block_gradients`, for an answer that nobody vouches for.

    Args:
        content: of the reply.
        shapes: ``(d_out, d_in)`` of the block's layers.

    Raises:
        RefusedReplyError: a field is missing, unexpected or has another type, or a gradient has
            another shape.
    """
    with refusing_malformed():
        about = content.config_records[ABOUT]
        lacks = read(about, "lacks", bool)
        expected: Shapes = {} if lacks else shapes
        _block_gradients(expected).check(content)
        return BlockAnswer(
            site=read(about, "site", str),
            question=read(about, "question", str),
            need_from=read(about, "need-from", int) if lacks else None,
            distance=read(about, "distance", float),
            gradients=read_arrays(content.array_records[_GRADIENT], expected),
        )


def _block_gradients(shapes: Shapes) -> Layout:
    return reply_layout(Layout({ABOUT: _BLOCK_ANSWER}, {_GRADIENT: shapes}))
