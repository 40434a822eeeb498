"""Eq. 8 at one site: one number per layer group."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from flwr.app import ConfigRecord, RecordDict

from layerweld.errors import RefusedReplyError
from layerweld.transport.identity import reply_layout
from layerweld.transport.layout import Layout, Many, Real, Text
from layerweld.transport.untrusted import read_list, refusing_malformed

SHIFT = "query.shift"
"""Flower's type of the message; its request is a model to measure."""

_SHIFT = "shift"


def encode_shifts(shifts: Mapping[str, float]) -> RecordDict:
    """The squared distances by group."""
    record = ConfigRecord({"groups": list(shifts), "shifts": list(shifts.values())})
    return RecordDict({_SHIFT: record})


def shifts_layout(groups: Collection[str]) -> Layout:
    """All that the reply may hold."""
    longest = max(map(len, groups), default=0)
    names, distances = Many(Text(longest), len(groups)), Many(Real(low=0.0), len(groups))
    return reply_layout(Layout({_SHIFT: {"groups": names, "shifts": distances}}))


def decode_shifts(content: RecordDict, groups: Collection[str]) -> dict[str, float]:
    """Inverse of :func:`encode_shifts`, for a reply that is not trusted.

    Args:
        content: of the reply.
        groups: names of those that it must tell of, and no other.

    Raises:
        RefusedReplyError: the groups are not these, a distance is negative or not finite, or
            something else came along.
    """
    with refusing_malformed():
        shifts_layout(groups).check(content)
        record = content.config_records[_SHIFT]
        names, values = read_list(record, "groups", str), read_list(record, "shifts", float)
        shifts = dict(zip(names, values, strict=True))
    if shifts.keys() != {*groups} or len(names) != len(groups):
        raise RefusedReplyError("the shifts are of other groups than those of the plan")
    return shifts
