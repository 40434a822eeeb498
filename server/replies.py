"""What a site's answer to the server's own questions must hold; anything else is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from flwr.app import RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.exact_sum import LIMIT
from layerweld.transport.arrays import read_arrays
from layerweld.transport.introduction import decode_introduction
from layerweld.transport.messages import FOUND_OUT_BY_TRAINING, Introduction, differing
from layerweld.transport.untrusted import read, read_list, refusing_malformed
from server.results import Score


def read_introduction(_site: str, content: RecordDict) -> Introduction:
    """Who the site is."""
    return decode_introduction(content)


def read_trained(content: RecordDict, before: Introduction) -> Introduction:
    """Who the site is once it has an adapter: the same as before, but for what training decides.

    Raises:
        RefusedReplyError: it is another one, or has no adapter still.
    """
    introduction = decode_introduction(content)
    others = [
        field for field in differing(before, introduction) if field not in FOUND_OUT_BY_TRAINING
    ]
    if others or introduction.kind == "none":
        raise RefusedReplyError(f"after fine-tuning it has another {', '.join(others)}")
    return introduction


def read_remainder(
    content: RecordDict, parameters: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """What a site's fine-tuning changed outside of the linear layers.

    Args:
        content: of the answer.
        parameters: shape of every parameter of the base model.

    Raises:
        RefusedReplyError: an unknown parameter, another shape, or numbers that cannot be summed.
    """
    with refusing_malformed():
        record = content.array_records["remainder"]
        tensors = read_arrays(record, {name: parameters[name] for name in record})
    for name, values in tensors.items():
        if not bool((values.abs() < LIMIT).all()):  # False for NaN too
            raise RefusedReplyError(f"remainder of {name!r}: not finite, or beyond 2⁴²")
    return tensors


def read_shifts(content: RecordDict, groups: Collection[str]) -> dict[str, float]:
    """Eq. 8 at one site, by group.

    Raises:
        RefusedReplyError: the groups are not these.
    """
    with refusing_malformed():
        record = content.config_records["shift"]
        names, values = read_list(record, "groups", str), read_list(record, "shifts", float)
        shifts = dict(zip(names, values, strict=True))
    if shifts.keys() != {*groups}:
        raise RefusedReplyError("the shifts are of other groups than those of the plan")
    return shifts


def read_score(_site: str, content: RecordDict) -> Score:
    """Held-out accuracy at one site.

    Raises:
        RefusedReplyError: no share, or no number of rows.
    """
    with refusing_malformed():
        metrics = content.metric_records["metrics"]
        accuracy, samples = read(metrics, "accuracy", float), read(metrics, "num-examples", int)
    if not 0 <= accuracy <= 1 or samples < 0:
        raise RefusedReplyError(f"an accuracy of {accuracy} over {samples} rows")
    return Score(accuracy, samples)
