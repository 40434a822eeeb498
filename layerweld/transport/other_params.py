"""What a site's fine-tuning changed outside of the linear layers."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import RecordDict
from torch import Tensor

from layerweld.transport.arrays import Shapes, shapes_of, to_arrays
from layerweld.transport.identity import reply_layout
from layerweld.transport.layout import Layout
from layerweld.transport.untrusted import refusing_malformed

OTHER_PARAMS = "train.other_params"
"""Flower's type of the message; its request says no more than what it is about."""

_OTHER_PARAMS = "other-params"


def encode_other_params(other_params: Mapping[str, Tensor]) -> RecordDict:
    """A site's other parameters, by the name of the parameter."""
    return RecordDict({_OTHER_PARAMS: to_arrays(other_params)})


def other_params_layout(parameters: Shapes) -> Layout:
    """All that the reply may hold: a site sends what differs, at most every parameter."""
    return reply_layout(Layout(arrays={_OTHER_PARAMS: parameters}))


def other_params_bytes(other_params: Mapping[str, Tensor]) -> int:
    """What these take on the wire, without any header."""
    return other_params_layout(shapes_of(other_params)).num_bytes


def decode_other_params(content: RecordDict, parameters: Shapes) -> dict[str, Tensor]:
    """Inverse of :func:`encode_other_params`, for a reply that is not trusted.

    Args:
        content: of the reply.
        parameters: shape of every parameter that may be among them.

    Raises:
        RefusedReplyError: an unknown parameter, another shape, or something else came along.
    """
    with refusing_malformed():
        sent = {name: parameters[name] for name in content.array_records[_OTHER_PARAMS]}
        return other_params_layout(sent).read(content)[_OTHER_PARAMS]
