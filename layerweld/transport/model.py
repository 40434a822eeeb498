"""A model that sites shall measure, as Flower records."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from layerweld.transport.arrays import from_arrays, to_arrays
from layerweld.transport.layout import Layout, Many, Text
from layerweld.transport.messages import ModelToMeasure
from layerweld.transport.run import ABOUT
from layerweld.transport.untrusted import read, read_list, refusing_malformed
from layerweld.transport.updates import all_updates
from layerweld.updates.named_tensors import update_tensors

_MERGED, _REMAINDER = "merged", "remainder"
_LAYOUT = Layout(
    {ABOUT: {"run": Text(), "kind": Text(), "layers": Many(Text(300), 2**15)}},
    {_MERGED: None, _REMAINDER: None},
)


def encode_model(model: ModelToMeasure) -> RecordDict:
    """A model to measure."""
    about = ConfigRecord({"run": model.run, "kind": model.kind, "layers": list(model.layers)})
    return RecordDict(
        {
            ABOUT: about,
            _MERGED: to_arrays(update_tensors(model.updates)),
            _REMAINDER: to_arrays(model.remainder),
        }
    )


def decode_model(content: RecordDict) -> ModelToMeasure:
    """Inverse of :func:`encode_model`; whether the updates fit the model is not looked at.

    Raises:
        RefusedReplyError: it is no model to measure.
    """
    with refusing_malformed():
        _LAYOUT.check(content)
        about = content.config_records[ABOUT]
        return ModelToMeasure(
            run=read(about, "run", str),
            kind=read(about, "kind", str),
            layers=tuple(read_list(about, "layers", str)),
            updates=all_updates(from_arrays(content.array_records[_MERGED])),
            remainder=from_arrays(content.array_records[_REMAINDER]),
        )
