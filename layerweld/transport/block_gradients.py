"""The gradient, by the weights of one merged block, of its distance to a site's own block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from layerweld.transport.arrays import Shapes, from_arrays, to_arrays
from layerweld.transport.identity import (
    ABOUT,
    Identity,
    reply_layout,
    request_record,
    require_sent_identity,
)
from layerweld.transport.layout import Entries, Layout, Many, Real, Whole
from layerweld.transport.step_context import (
    CONTEXT_ARRAYS,
    CONTEXT_ENTRIES,
    MOST_STEPS,
    StepContext,
    step_context,
)
from layerweld.transport.untrusted import read, read_list, refusing_malformed
from layerweld.updates.named_tensors import extend_digest, update_tensors, updates_from
from layerweld.updates.update import Update

BLOCK_GRADIENTS = "train.distillation"
"""Flower's type of the message."""

_UPDATES, _GRADIENT = "updates", "gradient"
_REQUEST = Layout(
    {ABOUT: {**CONTEXT_ENTRIES, "round": Whole(high=2**32)}}, {**CONTEXT_ARRAYS, _UPDATES: None}
)


@dataclass(frozen=True)
class BlockRequest:
    """The server's request for the gradient of a block's distance by the weights of its layers.

    Attributes:
        context: the block's step, and what was merged before it.
        round: of the block's descent, from 0.
        updates: the block's merged updates, as the coefficients are now.
    """

    context: StepContext
    round: int
    updates: Mapping[str, Update]

    @cached_property
    def identity(self) -> Identity:
        """What the reply must be about."""
        return self.context.identity(BLOCK_GRADIENTS, self.round, extend_digest("", self.updates))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the gradients, by layer."""
        return {layer: update.shape for layer, update in self.updates.items()}


@dataclass(frozen=True)
class BlockReply:
    """A site's reply to one :class:`BlockRequest`.

    Attributes:
        need_from: first step whose merged updates the site lacks (-1: the other parameters too),
            if any; the rest is empty then.
        distance: mean over the site's samples of the squared distance to its own block's output.
        gradients: of it by the weight of each layer of the block, ``(d_out, d_in)``, float32.
    """

    need_from: int | None = None
    distance: float = 0.0
    gradients: Mapping[str, Tensor] = field(default_factory=dict)


def encode_block_request(request: BlockRequest) -> RecordDict:
    """A request about one block, with what the site may lack of what was merged before."""
    context = request.context
    record = request_record(request.identity, **context.entries, round=request.round)
    updates = to_arrays(update_tensors(request.updates))
    return RecordDict({ABOUT: record, **context.arrays, _UPDATES: updates})


def decode_block_request(content: RecordDict) -> BlockRequest:
    """Inverse of :func:`encode_block_request`; the updates may not fit the model.

    Raises:
        RefusedReplyError: it is no such request.
    """
    with refusing_malformed():
        _REQUEST.check(content)
        updates = updates_from(from_arrays(content.array_records[_UPDATES]))
        round_ = read(content.config_records[ABOUT], "round", int)
        request = BlockRequest(step_context(content), round_, updates)
        require_sent_identity(content, request.identity)
        return request


def encode_block_gradients(reply: BlockReply) -> RecordDict:
    """A site's gradients of one block, or from which step on it must catch up."""
    record = ConfigRecord(
        {
            "need-from": [] if reply.need_from is None else [reply.need_from],
            "distance": reply.distance,
        }
    )
    return RecordDict({ABOUT: record, _GRADIENT: to_arrays(reply.gradients)})


def block_gradients_layout(shapes: Shapes) -> Layout:
    """All that a reply with gradients may hold.

    Args:
        shapes: ``(d_out, d_in)`` of the block's layers.
    """
    entries: Entries = {"need-from": Many(Whole(-1, MOST_STEPS), 1), "distance": Real()}
    return reply_layout(Layout({ABOUT: entries}, {_GRADIENT: shapes}))


def decode_block_gradients(content: RecordDict, shapes: Shapes) -> BlockReply:
    """Inverse of :func:`encode_block_gradients`, for a reply that is not trusted.

    Args:
        content: of the reply.
        shapes: as :func:`block_gradients_layout` takes them.

    Raises:
        RefusedReplyError: a field is missing, unexpected or has another type, or a gradient has
            another shape.
    """
    with refusing_malformed():
        record = content.config_records[ABOUT]
        layout = block_gradients_layout(shapes)
        need_from = next(iter(read_list(record, "need-from", int)), None)
        if need_from is not None:
            layout.without_arrays.check(content)
            return BlockReply(need_from)
        gradients = layout.read(content)[_GRADIENT]
        return BlockReply(None, read(record, "distance", float), gradients)
