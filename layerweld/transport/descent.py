"""The messages of learnt coefficients as Flower records, and back."""

from __future__ import annotations

import torch
from flwr.app import ConfigRecord, RecordDict

from layerweld.expected import Shapes
from layerweld.named_tensors import site_tensors, update_tensors, updates_by_site, updates_from
from layerweld.transport.arrays import from_arrays, read_arrays, to_arrays
from layerweld.transport.descent_messages import (
    BlockAnswer,
    BlockQuestion,
    CoefficientAnswer,
    CoefficientQuestion,
)
from layerweld.transport.run import ABOUT
from layerweld.transport.untrusted import read, read_list, refusing_malformed

_COEFFICIENTS, _UPDATES, _REMAINDER = "coefficients", "updates", "remainder"
_GRADIENT, _MERGED = "gradient", "merged"


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
    """Inverse of :func:`encode_coefficients`."""
    about = content.config_records[ABOUT]
    return CoefficientQuestion(
        run=read(about, "run", str),
        method=read(about, "method", str),
        round=read(about, "round", int),
        layers=tuple(read_list(about, "layers", str)),
        sites=tuple(read_list(about, "sites", str)),
        held=read(about, "held", str),
        averaged=read(about, "averaged", bool),
        coefficients=from_arrays(content.array_records[_COEFFICIENTS])[_COEFFICIENTS],
        updates=updates_by_site(from_arrays(content.array_records[_UPDATES])),
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


def decode_gradient(content: RecordDict, shape: tuple[int, int]) -> CoefficientAnswer:
    """Inverse of :func:`encode_gradient`, for an answer that nobody vouches for.

    Args:
        content: of the reply.
        shape: sites and layers.

    Raises:
        RefusedReplyError: a field is missing or has another type, or the gradient another shape.
    """
    with refusing_malformed():
        about = content.config_records[ABOUT]
        lacks = read(about, "lacks", bool)
        expected = {} if lacks else {_GRADIENT: shape}
        arrays = read_arrays(content.array_records[_GRADIENT], expected)
        return CoefficientAnswer(
            site=read(about, "site", str),
            question=read(about, "question", str),
            lacks=lacks,
            entropy=read(about, "entropy", float),
            gradient=arrays.get(_GRADIENT, torch.empty(0)),
        )


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
    """Inverse of :func:`encode_block`."""
    about = content.config_records[ABOUT]
    merged = updates_by_site(from_arrays(content.array_records[_MERGED]))
    return BlockQuestion(
        run=read(about, "run", str),
        method=read(about, "method", str),
        step=read(about, "step", int),
        round=read(about, "round", int),
        layers=tuple(read_list(about, "layers", str)),
        plan=read(about, "plan", str),
        prefix=read(about, "prefix", str),
        averaged=read(about, "averaged", bool),
        updates=updates_from(from_arrays(content.array_records[_UPDATES])),
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


def decode_block_gradients(content: RecordDict, shapes: Shapes) -> BlockAnswer:
    """Inverse of :func:`encode_block_gradients`, for an answer that nobody vouches for.

    Args:
        content: of the reply.
        shapes: ``(d_out, d_in)`` of the block's layers.

    Raises:
        RefusedReplyError: a field is missing or has another type, or a gradient another shape.
    """
    with refusing_malformed():
        about = content.config_records[ABOUT]
        lacks = read(about, "lacks", bool)
        return BlockAnswer(
            site=read(about, "site", str),
            question=read(about, "question", str),
            need_from=read(about, "need-from", int) if lacks else None,
            distance=read(about, "distance", float),
            gradients=read_arrays(content.array_records[_GRADIENT], {} if lacks else shapes),
        )
