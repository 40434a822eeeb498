"""Held-out accuracy at one site as Flower records, and back."""

from __future__ import annotations

from flwr.app import MetricRecord, RecordDict

from layerweld.transport.layout import Layout, Real, Whole
from layerweld.transport.subject import reply_layout
from layerweld.transport.untrusted import read, refusing_malformed

_METRICS = "metrics"
_LAYOUT = reply_layout(
    Layout(metrics={_METRICS: {"accuracy": Real(0.0, 1.0), "num-examples": Whole()}})
)

BUDGET = _LAYOUT.budget
"""What the reply may take."""


def encode_score(accuracy: float, samples: int) -> RecordDict:
    """Share of the rows that a model gets right, and how many rows there are."""
    return RecordDict({_METRICS: MetricRecord({"accuracy": accuracy, "num-examples": samples})})


def decode_score(content: RecordDict) -> tuple[float, int]:
    """Inverse of :func:`encode_score`, for a reply that nobody vouches for.

    Raises:
        RefusedReplyError: no share, no number of rows, or something else came along.
    """
    with refusing_malformed():
        _LAYOUT.check(content)
        metrics = content.metric_records[_METRICS]
        return read(metrics, "accuracy", float), read(metrics, "num-examples", int)
