"""The messages of learnt coefficients as Flower records, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from layerweld.descent import (
    BlockAnswer,
    BlockQuestion,
    CoefficientAnswer,
    CoefficientQuestion,
    UpdatesBySite,
)
from layerweld.expected import Shapes
from layerweld.transport import (
    from_arrays,
    read,
    read_arrays,
    read_list,
    refusing_malformed,
    to_arrays,
    update_tensors,
    updates_from,
)
from layerweld.updates import Update

_ABOUT, _COEFFICIENTS, _UPDATES, _REMAINDER = "about", "coefficients", "updates", "remainder"
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
            _ABOUT: about,
            _COEFFICIENTS: to_arrays({_COEFFICIENTS: question.coefficients}),
            _UPDATES: to_arrays(site_tensors(question.updates)),
            _REMAINDER: to_arrays(question.remainder),
        }
    )


def decode_coefficients(content: RecordDict) -> CoefficientQuestion:
    """Inverse of :func:`encode_coefficients`."""
    about = content.config_records[_ABOUT]
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
    return RecordDict({_ABOUT: about, _GRADIENT: to_arrays(gradient)})


def decode_gradient(content: RecordDict, shape: tuple[int, int]) -> CoefficientAnswer:
    """Inverse of :func:`encode_gradient`, for an answer that nobody vouches for.

    Args:
        content: of the reply.
        shape: sites and layers.

    Raises:
        RefusedReplyError: a field is missing or has another type, or the gradient another shape.
    """
    with refusing_malformed():
        about = content.config_records[_ABOUT]
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
            _ABOUT: about,
            _UPDATES: to_arrays(update_tensors(question.updates)),
            _MERGED: to_arrays(site_tensors(merged)),
            _REMAINDER: to_arrays(question.remainder),
        }
    )


def decode_block(content: RecordDict) -> BlockQuestion:
    """Inverse of :func:`encode_block`."""
    about = content.config_records[_ABOUT]
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
    return RecordDict({_ABOUT: about, _GRADIENT: to_arrays(answer.gradients)})


def decode_block_gradients(content: RecordDict, shapes: Shapes) -> BlockAnswer:
    """Inverse of :func:`encode_block_gradients`, for an answer that nobody vouches for.

    Args:
        content: of the reply.
        shapes: ``(d_out, d_in)`` of the block's layers.

    Raises:
        RefusedReplyError: a field is missing or has another type, or a gradient another shape.
    """
    with refusing_malformed():
        about = content.config_records[_ABOUT]
        lacks = read(about, "lacks", bool)
        return BlockAnswer(
            site=read(about, "site", str),
            question=read(about, "question", str),
            need_from=read(about, "need-from", int) if lacks else None,
            distance=read(about, "distance", float),
            gradients=read_arrays(content.array_records[_GRADIENT], {} if lacks else shapes),
        )


def site_tensors(updates: UpdatesBySite) -> dict[str, Tensor]:
    """The tensors of several sites' updates, by ``site/layer/left`` and so on."""
    return {
        f"{site}/{name}": tensor
        for site, of in updates.items()
        for name, tensor in update_tensors(of).items()
    }


def updates_by_site(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Update]]:
    """Inverse of :func:`site_tensors`; no site's name holds a slash."""
    by_site: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        site, _, rest = name.partition("/")
        by_site.setdefault(site, {})[rest] = tensor
    return {site: updates_from(of) for site, of in by_site.items()}
