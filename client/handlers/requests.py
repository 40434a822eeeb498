"""What a site is asked, decoded, and compared with its own base model before anything is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import RecordDict
from torch import Tensor

from client.state import SiteState
from layerweld.errors import RefusedReplyError
from layerweld.plan import MergePlan
from layerweld.transport.block_gradients import BlockRequest, decode_block_request
from layerweld.transport.coefficients import CoefficientsRequest, decode_coefficients_request
from layerweld.transport.model import ModelToMeasure, decode_model
from layerweld.transport.statistics import StatisticsRequest, decode_statistics_request
from layerweld.transport.untrusted import refusing_malformed
from layerweld.untrusted.text import quoted
from layerweld.updates.bounds import most_sent
from layerweld.updates.update import Update


def statistics_request(state: SiteState, content: RecordDict) -> StatisticsRequest:
    """A request for the statistics of a step.

    Raises:
        RefusedReplyError: it is none, or brings what does not fit this site's model.
    """
    request = decode_statistics_request(content)
    _require_fit(state, request.context.merged.values(), request.context.other_params)
    return request


def block_request(state: SiteState, content: RecordDict) -> BlockRequest:
    """A request about one block; raises as :func:`statistics_request`."""
    request = decode_block_request(content)
    context = request.context
    _require_fit(state, (*context.merged.values(), request.updates), context.other_params)
    return request


def coefficients_request(state: SiteState, content: RecordDict) -> CoefficientsRequest:
    """A request about coefficients; raises as :func:`statistics_request`."""
    request = decode_coefficients_request(content)
    _require_fit(state, request.updates.values(), request.other_params)
    return request


def model_to_measure(message_type: str, state: SiteState, content: RecordDict) -> ModelToMeasure:
    """A model to measure; raises as :func:`statistics_request`."""
    model = decode_model(message_type, content)
    _require_fit(state, [model.updates], model.other_params)
    return model


def _require_fit(
    state: SiteState,
    all_updates: Iterable[Mapping[str, Update]],
    other_params: Mapping[str, Tensor],
) -> None:
    with refusing_malformed():
        for updates in all_updates:
            require_updates_of(state.plan, updates)
        parameters = dict(state.base.backbone.named_parameters()) if other_params else {}
        for name, tensor in other_params.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise RefusedReplyError(
                    f"{quoted(name)} among the other parameters: this model has none"
                )


def require_updates_of(plan: MergePlan, updates: Mapping[str, Update]) -> None:
    """Refuse updates of layers that the model does not have, or of another shape.

    Raises:
        RefusedReplyError: as said, or the rank of one is beyond all reason.
    """
    shapes = plan.shapes
    for layer, update in updates.items():
        if shapes.get(layer) != tuple(update.shape):
            raise RefusedReplyError(f"an update of {quoted(layer)} that does not fit this model")
        if update.rank > most_sent(*update.shape):
            raise RefusedReplyError(f"an update of {layer!r} of rank {update.rank}")
