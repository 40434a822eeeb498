"""The statistics of one step: asked for behind what is merged, and sent group by group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.plan import LayerGroup
from layerweld.statistics.group import GroupStatistics, ProductForm, blank_statistics
from layerweld.transport.arrays import Shapes, shapes_of, to_arrays
from layerweld.transport.identity import (
    ABOUT,
    Identity,
    reply_layout,
    request_record,
    require_sent_identity,
)
from layerweld.transport.layout import Entries, Flag, Layout, Many, Text, Whole
from layerweld.transport.step_context import (
    CONTEXT_ARRAYS,
    CONTEXT_ENTRIES,
    MOST_STEPS,
    StepContext,
    step_context,
)
from layerweld.transport.untrusted import read, read_list, refusing_malformed

STATISTICS = "train.statistics"
"""Flower's type of the message."""

_STATISTICS = "statistics"
_REQUEST = Layout(
    {ABOUT: {**CONTEXT_ENTRIES, "dense": Flag(), "with-updates": Flag()}}, CONTEXT_ARRAYS
)


@dataclass(frozen=True)
class StatisticsRequest:
    """The server's request for the statistics of one step.

    Attributes:
        context: the step, and what was merged before it.
        form: how products travel.
    """

    context: StepContext
    form: ProductForm

    @property
    def identity(self) -> Identity:
        """What the reply must be about."""
        return self.context.identity(STATISTICS, self.form)


@dataclass(frozen=True)
class StatisticsReply:
    """A site's reply to one :class:`StatisticsRequest`.

    Attributes:
        statistics: of every group of the step; empty if the site must catch up first.
        need_from: first step whose merged updates the site lacks (-1: the other parameters too),
            if any.
    """

    statistics: tuple[GroupStatistics, ...] = ()
    need_from: int | None = None


def encode_statistics_request(request: StatisticsRequest) -> RecordDict:
    """A request with the merged updates it carries."""
    form, context = request.form, request.context
    entries = {"dense": form.dense, "with-updates": form.with_updates}
    record = request_record(request.identity, **context.entries, **entries)
    return RecordDict({ABOUT: record, **context.arrays})


def decode_statistics_request(content: RecordDict) -> StatisticsRequest:
    """Inverse of :func:`encode_statistics_request`; the updates may not fit the model.

    Raises:
        RefusedReplyError: it is no such request.
    """
    with refusing_malformed():
        _REQUEST.check(content)
        record = content.config_records[ABOUT]
        form = ProductForm(read(record, "dense", bool), read(record, "with-updates", bool))
        request = StatisticsRequest(step_context(content), form)
        require_sent_identity(content, request.identity)
        return request


def encode_statistics(reply: StatisticsReply) -> RecordDict:
    """A reply; of each Gram matrix only the upper triangle travels."""
    sent = reply.statistics
    record = ConfigRecord(
        {
            "need-from": [] if reply.need_from is None else [reply.need_from],
            "groups": [one.group for one in sent],
            "tokens": [one.num_tokens for one in sent],
        }
    )
    return RecordDict({ABOUT: record, _STATISTICS: to_arrays(_tensors(sent))})


def statistics_layout(
    groups: Sequence[LayerGroup], ranks: Mapping[str, int], form: ProductForm
) -> Layout:
    """All that a reply with statistics may hold.

    Args:
        groups: of the step, in the plan's order.
        ranks: LoRA rank of each layer that the site fine-tuned; 0 where the whole layer changed.
        form: how products travel in this run.
    """
    blank = _tensors(blank_statistics(group, ranks, form) for group in groups)
    return _layout(shapes_of(blank), len(groups))


def decode_statistics(
    content: RecordDict, groups: Sequence[LayerGroup], ranks: Mapping[str, int], form: ProductForm
) -> StatisticsReply:
    """Inverse of :func:`encode_statistics`, for a reply that is not trusted.

    Args:
        content: of the reply.
        groups: as :func:`statistics_layout` takes them.
        ranks: likewise.
        form: likewise.

    Raises:
        RefusedReplyError: a record is missing, has the wrong type, or does not fit the others; an
            array is missing, unexpected, or not what its place needs; or something else came
            along. That is seen before memory is taken for any number.
    """
    with refusing_malformed():
        record = content.config_records[ABOUT]
        need_from = next(iter(read_list(record, "need-from", int)), None)
        if need_from is not None:
            _layout({}, 0).check(content)
            return StatisticsReply(need_from=need_from)
        arrays = statistics_layout(groups, ranks, form).read(content)[_STATISTICS]
        if read_list(record, "groups", str) != [group.name for group in groups]:
            raise RefusedReplyError("its statistics are of other groups, or in another order")
        tokens = read_list(record, "tokens", int)
        return StatisticsReply(
            tuple(
                GroupStatistics.from_tensors(group, count, _own(arrays, index))
                for index, (group, count) in enumerate(zip(groups, tokens, strict=True))
            )
        )


def _layout(shapes: Shapes, groups: int) -> Layout:
    entries: Entries = {
        "need-from": Many(Whole(-1, MOST_STEPS), 1),
        "groups": Many(Text(300), groups),
        "tokens": Many(Whole(), groups),
    }
    return reply_layout(Layout({ABOUT: entries}, {_STATISTICS: shapes}))


def _tensors(groups: Iterable[GroupStatistics]) -> dict[str, Tensor]:
    """What travels, by name."""
    return {
        f"{index}/{name}": tensor
        for index, group in enumerate(groups)
        for name, tensor in group.tensors().items()
    }


def _own(arrays: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    here = f"{index}/"
    return {name.removeprefix(here): t for name, t in arrays.items() if name.startswith(here)}
