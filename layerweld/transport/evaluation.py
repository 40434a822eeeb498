"""Held-out accuracy at one site."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from layerweld.transport.identity import reply_layout
from layerweld.transport.layout import Layout, Real, Whole
from layerweld.transport.untrusted import read, refusing_malformed

EVALUATION = "evaluate.model"
"""Flower's type of the message; its request is a model to measure."""

_METRICS = "metrics"
EVALUATION_LAYOUT = reply_layout(
    Layout({_METRICS: {"accuracy": Real(0.0, 1.0), "num-examples": Whole()}})
)
"""All that the reply may hold."""


def encode_accuracy(accuracy: float, samples: int) -> RecordDict:
    """Share of the samples that a model gets right, and how many samples there are."""
    return RecordDict({_METRICS: ConfigRecord({"accuracy": accuracy, "num-examples": samples})})


def decode_accuracy(content: RecordDict) -> tuple[float, int]:
    """Inverse of :func:`encode_accuracy`, for a reply that is not trusted.

    Raises:
        RefusedReplyError: no share, no number of samples, or something else came along.
    """
    with refusing_malformed():
        EVALUATION_LAYOUT.check(content)
        metrics = content.config_records[_METRICS]
        return read(metrics, "accuracy", float), read(metrics, "num-examples", int)
