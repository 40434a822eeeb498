"""What a site's fine-tuning changed outside of the linear layers, as Flower records, and back."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import RecordDict
from torch import Tensor

from layerweld.transport.arrays import read_arrays, to_arrays
from layerweld.transport.layout import Budget, Layout, Shapes
from layerweld.transport.subject import reply_layout
from layerweld.transport.untrusted import refusing_malformed

_REMAINDER = "remainder"


def encode_remainder(remainder: Mapping[str, Tensor]) -> RecordDict:
    """A site's remainder, by the name of the parameter."""
    return RecordDict({_REMAINDER: to_arrays(remainder)})


def remainder_budget(parameters: Shapes) -> Budget:
    """What the reply may take: a site sends what differs, at most every parameter."""
    return _layout(parameters).budget


def decode_remainder(content: RecordDict, parameters: Shapes) -> dict[str, Tensor]:
    """Inverse of :func:`encode_remainder`, for a reply that nobody vouches for.

    Args:
        content: of the reply.
        parameters: shape of every parameter that may be among them.

    Raises:
        RefusedReplyError: an unknown parameter, another shape, or something else came along.
    """
    with refusing_malformed():
        record = content.array_records[_REMAINDER]
        shapes = {name: parameters[name] for name in record}
        _layout(shapes).check(content)
        return read_arrays(record, shapes)


def _layout(shapes: Shapes) -> Layout:
    return reply_layout(Layout(arrays={_REMAINDER: shapes}))
