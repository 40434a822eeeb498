"""What a site is asked, decoded, and compared with its own base model before anything is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import RecordDict
from torch import Tensor

from client.state import SiteState
from layerweld.errors import RefusedReplyError
from layerweld.plan import MergePlan
from layerweld.transport.chain import decode_question
from layerweld.transport.descent import decode_block, decode_coefficients
from layerweld.transport.descent_messages import BlockQuestion, CoefficientQuestion
from layerweld.transport.messages import ModelToMeasure, Question
from layerweld.transport.model import decode_model
from layerweld.transport.untrusted import refusing_malformed
from layerweld.untrusted.text import quoted
from layerweld.updates.ranks import most_sent
from layerweld.updates.update import Update


def chain_question(state: SiteState, content: RecordDict) -> Question:
    """A question of the chain.

    Raises:
        RefusedReplyError: it is none, or brings what does not fit this site's model.
    """
    question = decode_question(content)
    _require_fit(state, question.merged.values(), question.remainder)
    return question


def block_question(state: SiteState, content: RecordDict) -> BlockQuestion:
    """A question about one block; raises as :func:`chain_question`."""
    question = decode_block(content)
    _require_fit(state, (*question.merged.values(), question.updates), question.remainder)
    return question


def coefficient_question(state: SiteState, content: RecordDict) -> CoefficientQuestion:
    """A question about coefficients; raises as :func:`chain_question`."""
    question = decode_coefficients(content)
    _require_fit(state, question.updates.values(), question.remainder)
    return question


def model_to_measure(state: SiteState, content: RecordDict) -> ModelToMeasure:
    """A model to measure; raises as :func:`chain_question`."""
    model = decode_model(content)
    _require_fit(state, [model.updates], model.remainder)
    return model


def _require_fit(
    state: SiteState, all_updates: Iterable[Mapping[str, Update]], remainder: Mapping[str, Tensor]
) -> None:
    with refusing_malformed():
        for updates in all_updates:
            require_updates_of(state.plan, updates)
        parameters = dict(state.base.backbone.named_parameters()) if remainder else {}
        for name, tensor in remainder.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise RefusedReplyError(f"a remainder of {quoted(name)}: this model has none")


def require_updates_of(plan: MergePlan, updates: Mapping[str, Update]) -> None:
    """Refuse updates of layers that the model does not have, or of another shape.

    Raises:
        RefusedReplyError: as said, or the rank of one is beyond all reason.
    """
    shapes = {s.name: (s.d_out, g.d_in) for g in plan.groups for s in g.layers}
    for layer, update in updates.items():
        if shapes.get(layer) != tuple(update.shape):
            raise RefusedReplyError(f"an update of {quoted(layer)} that does not fit this model")
        if update.rank > most_sent(*update.shape):
            raise RefusedReplyError(f"an update of {layer!r} of rank {update.rank}")
