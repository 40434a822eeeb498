"""A site's Fisher sums as Flower records, and back."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import RecordDict
from torch import Tensor

from layerweld.transport.arrays import read_arrays, to_arrays
from layerweld.transport.layout import Budget, Layout, Shapes
from layerweld.transport.subject import reply_layout
from layerweld.transport.untrusted import refusing_malformed

_FISHER = "fisher"


def encode_fisher(sums: Mapping[str, Tensor]) -> RecordDict:
    """``importance/<layer>`` and ``product/<layer>`` of every layer that is merged."""
    return RecordDict({_FISHER: to_arrays(sums)})


def fisher_budget(shapes: Shapes) -> Budget:
    """What the reply may take."""
    return _layout(shapes).budget


def decode_fisher(content: RecordDict, shapes: Shapes) -> dict[str, Tensor]:
    """Inverse of :func:`encode_fisher`, for a reply that nobody vouches for.

    Args:
        content: of the reply.
        shapes: :func:`layerweld.transport.expected.fisher_shapes`.

    Raises:
        RefusedReplyError: an array is missing or has another shape, or something else came along.
    """
    with refusing_malformed():
        _layout(shapes).check(content)
        return read_arrays(content.array_records[_FISHER], shapes)


def _layout(shapes: Shapes) -> Layout:
    return reply_layout(Layout(arrays={_FISHER: shapes}))
