"""The chain's questions and answers as Flower records."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from layerweld.statistics.group import (
    GroupStatistics,
    ProductForm,
)
from layerweld.transport.arrays import from_arrays, read_arrays, to_arrays
from layerweld.transport.layout import (
    Budget,
    Entries,
    Flag,
    Layout,
    Many,
    Shapes,
    Text,
    Whole,
    check_record,
)
from layerweld.transport.messages import Answer, Question
from layerweld.transport.run import ABOUT
from layerweld.transport.subject import reply_layout
from layerweld.transport.untrusted import read, read_list, refusing_malformed
from layerweld.transport.updates import all_updates
from layerweld.updates.named_tensors import update_tensors

_MERGED, _REMAINDER, _STATISTICS = "merged", "remainder", "statistics"
_MOST_STEPS, _MOST_LAYERS, _NAME = 2**16, 2**15, Text(300)
_QUESTION = Layout(
    {
        ABOUT: {
            **dict.fromkeys(("run", "method", "plan", "prefix"), Text()),
            **dict.fromkeys(("dense", "with-updates", "averaged"), Flag()),
            "step": Whole(high=_MOST_STEPS),
            "layers": Many(_NAME, _MOST_LAYERS),
        }
    },
    {_MERGED: None, _REMAINDER: None},
)


def encode_question(question: Question) -> RecordDict:
    """A question with the merged updates it carries."""
    about = ConfigRecord(
        {
            "run": question.run,
            "method": question.method,
            "step": question.step,
            "layers": list(question.layers),
            "plan": question.plan,
            "prefix": question.prefix,
            "dense": question.form.dense,
            "with-updates": question.form.with_updates,
            "averaged": question.averaged,
        }
    )
    merged = {
        f"{step}/{name}": tensor
        for step, updates in question.merged.items()
        for name, tensor in update_tensors(updates).items()
    }
    return RecordDict(
        {
            ABOUT: about,
            _MERGED: to_arrays(merged),
            _REMAINDER: to_arrays(question.remainder),
        }
    )


def decode_question(content: RecordDict) -> Question:
    """Inverse of :func:`encode_question`; whether the updates fit the model is not looked at.

    Raises:
        RefusedReplyError: it is no such question.
    """
    with refusing_malformed():
        _QUESTION.check(content)
        about = content.config_records[ABOUT]
        by_step: dict[int, dict[str, Tensor]] = {}
        for name, tensor in from_arrays(content.array_records[_MERGED]).items():
            step, _, rest = name.partition("/")
            by_step.setdefault(int(step), {})[rest] = tensor
        return Question(
            run=read(about, "run", str),
            method=read(about, "method", str),
            step=read(about, "step", int),
            layers=tuple(read_list(about, "layers", str)),
            plan=read(about, "plan", str),
            prefix=read(about, "prefix", str),
            form=ProductForm(read(about, "dense", bool), read(about, "with-updates", bool)),
            averaged=read(about, "averaged", bool),
            remainder=from_arrays(content.array_records[_REMAINDER]),
            merged={step: all_updates(tensors) for step, tensors in by_step.items()},
        )


def encode_answer(answer: Answer) -> RecordDict:
    """An answer; of each Gram matrix only the upper triangle travels."""
    tensors: dict[str, Tensor] = {}
    for i, statistics in enumerate(answer.statistics):
        tensors |= {f"{i}/{name}": tensor for name, tensor in statistics.tensors().items()}
    about = ConfigRecord(
        {
            "site": answer.site,
            "run": answer.run,
            "step": answer.step,
            "plan": answer.plan,
            "prefix": answer.prefix,
            "need-from": answer.step if answer.need_from is None else answer.need_from,
            "groups": [statistics.group for statistics in answer.statistics],
            "widths": [len(statistics.gram) for statistics in answer.statistics],
            "tokens": [statistics.num_tokens for statistics in answer.statistics],
        }
    )
    return RecordDict({ABOUT: about, _STATISTICS: to_arrays(tensors)})


def decode_subject(content: RecordDict) -> Answer:
    """What an answer is about, without its statistics: to be compared before more is read.

    Raises:
        RefusedReplyError: a field is missing, unexpected, too long, or has the wrong type.
    """
    with refusing_malformed():
        about = content.config_records[ABOUT]
        check_record(ABOUT, about, _about(_MOST_LAYERS))
        step, need_from = read(about, "step", int), read(about, "need-from", int)
        return Answer(
            site=read(about, "site", str),
            run=read(about, "run", str),
            step=step,
            plan=read(about, "plan", str),
            prefix=read(about, "prefix", str),
            need_from=need_from if need_from < step else None,
        )


def statistics_budget(shapes: Shapes) -> Budget:
    """What an answer with these arrays may take."""
    return _answer(shapes).budget


def require_no_statistics(content: RecordDict) -> None:
    """Refuse an answer that asks for merged updates, and brings something along.

    Raises:
        RefusedReplyError: as said.
    """
    with refusing_malformed():
        _answer({}).check(content)


def decode_statistics(content: RecordDict, shapes: Shapes) -> tuple[GroupStatistics, ...]:
    """The statistics of an answer that does not ask for merged updates instead.

    Args:
        content: of the reply.
        shapes: the arrays it must hold, :func:`layerweld.transport.expected.statistics_shapes`.

    Raises:
        RefusedReplyError: a record is missing, has the wrong type, or does not fit the others; an
            array is missing, unexpected, or not what its place needs, or something else came
            along. That is seen before memory is taken for any number.
    """
    with refusing_malformed():
        _answer(shapes).check(content)
        about = content.config_records[ABOUT]
        return _all_statistics(about, read_arrays(content.array_records[_STATISTICS], shapes))


def _answer(shapes: Shapes) -> Layout:
    return reply_layout(Layout({ABOUT: _about(len(shapes))}, {_STATISTICS: shapes}))


def _about(most: int) -> Entries:
    counts = Many(Whole(), most)
    return {
        **dict.fromkeys(("site", "run", "plan", "prefix"), Text()),
        "step": Whole(high=_MOST_STEPS),
        "need-from": Whole(-1, _MOST_STEPS),
        "groups": Many(_NAME, most),
        "widths": counts,
        "tokens": counts,
    }


def _all_statistics(
    about: ConfigRecord, arrays: Mapping[str, Tensor]
) -> tuple[GroupStatistics, ...]:
    groups = zip(
        read_list(about, "groups", str),
        read_list(about, "widths", int),
        read_list(about, "tokens", int),
        strict=True,
    )
    return tuple(
        GroupStatistics.from_tensors(group, width, tokens, _within(f"{i}/", arrays))
        for i, (group, width, tokens) in enumerate(groups)
    )


def _within(prefix: str, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in arrays.items() if n.startswith(prefix)}
