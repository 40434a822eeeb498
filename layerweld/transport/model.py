"""A model that sites shall measure: the request for its accuracy, its shift, and Fisher sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from layerweld.transport.arrays import digest_of_arrays, from_arrays, to_arrays
from layerweld.transport.identity import (
    ABOUT,
    IN_REQUEST,
    Identity,
    request_id,
    request_record,
    require_sent_identity,
)
from layerweld.transport.layout import Entries, Layout, Text
from layerweld.transport.step_context import LAYERS
from layerweld.transport.untrusted import packed, refusing_malformed, unpacked
from layerweld.updates.named_tensors import update_tensors, updates_from
from layerweld.updates.update import Update

_MERGED, _OTHER_PARAMS = "merged", "other-params"
_OWN: Entries = {"kind": Text(), "layers": LAYERS}
_LAYOUT = Layout({ABOUT: {**IN_REQUEST, **_OWN}}, {_MERGED: None, _OTHER_PARAMS: None})


@dataclass(frozen=True)
class ModelToMeasure:
    """A model that sites shall evaluate, or compare their own inputs with.

    Attributes:
        run: identifies the run.
        kind: ``base``, each site's ``individual`` one, or ``merged``.
        layers: the layers being merged.
        updates: the merged updates, by layer; empty unless ``merged``.
        other_params: the averaged other parameters; empty unless ``merged`` from full fine-tuning.
    """

    run: str
    kind: str
    layers: tuple[str, ...]
    updates: Mapping[str, Update] = field(default_factory=dict)
    other_params: Mapping[str, Tensor] = field(default_factory=dict)


def encode_model(message_type: str, model: ModelToMeasure) -> RecordDict:
    """A model to measure, as a request of this type."""
    arrays = {
        _MERGED: to_arrays(update_tensors(model.updates)),
        _OTHER_PARAMS: to_arrays(model.other_params),
    }
    identity = _identity(message_type, model, arrays)
    return RecordDict({ABOUT: request_record(identity, **packed(model, _OWN)), **arrays})


def decode_model(message_type: str, content: RecordDict) -> ModelToMeasure:
    """Inverse of :func:`encode_model`; whether the updates fit the model is not looked at.

    Raises:
        RefusedReplyError: it is no model to measure.
    """
    with refusing_malformed():
        _LAYOUT.check(content)
        model = ModelToMeasure(
            **unpacked(content.config_records[ABOUT], ("run", *_OWN)),
            updates=updates_from(from_arrays(content.array_records[_MERGED])),
            other_params=from_arrays(content.array_records[_OTHER_PARAMS]),
        )
        require_sent_identity(content, _identity(message_type, model, content.array_records))
        return model


def _identity(
    message_type: str, model: ModelToMeasure, arrays: Mapping[str, ArrayRecord]
) -> Identity:
    """Of a model by what travels of it: a merge may be kept in float64."""
    merged = digest_of_arrays(arrays[_MERGED], arrays[_OTHER_PARAMS])
    return Identity(
        model.run, request_id(message_type, model.kind, model.layers), chain_digest=merged
    )
