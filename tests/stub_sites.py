"""A federation without models: sites that answer at once with statistics drawn beforehand."""

import hashlib
import json
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from flwr.app import Message, RecordDict

from layerweld.plan import LayerGroup, LayerShape, MergePlan
from layerweld.settings.merge import MergeSettings
from layerweld.settings.run import RunSettings, validate_settings
from layerweld.statistics.group import GroupAccumulator, GroupStatistics, ProductForm
from layerweld.transport.chain import decode_question, encode_answer
from layerweld.transport.introduction import encode_introduction
from layerweld.transport.messages import Answer, Introduction, Question, Subject
from layerweld.transport.run import decode_run
from layerweld.transport.subject import with_subject
from layerweld.transport.updates import encode_updates
from layerweld.updates.update import LowRankUpdate
from server.numbered_files import NumberedFiles
from strategies import cohort
from strategies.chain_of_merges import ChainOfMerges, SolvedStep

PLAN = MergePlan(
    ("0", "1"),
    (
        LayerGroup("0.in", 0, 4, (LayerShape("0.q", 3), LayerShape("0.k", 2))),
        LayerGroup("0.out", 0, 3, (LayerShape("0.o", 4),)),
        LayerGroup("1.in", 1, 4, (LayerShape("1.q", 3),)),
        LayerGroup("1.out", 1, 3, (LayerShape("1.o", 4),)),
    ),
)
NAMES = ("ash", "birch", "cedar")
NODES = [{"name": name} for name in NAMES]
FORM = ProductForm(dense=False, with_updates=False)
RUN = "0123456789abcdef"


@cache
def introduction_of(name: str) -> Introduction:
    return Introduction(
        site=name,
        base="b",
        tokenizer="t",
        plan=PLAN.digest,
        settings="s",
        kind="lora",
        layers=PLAN.layer_names,
        ranks=(1 + NAMES.index(name) % 2,) * len(PLAN.layer_names),
        prefix="",
        task="",
        rows=3,
        samples=3,
        tokens=20,
        skipped=0,
        evaluates=False,
        classifies=True,
        labelled=False,
        factors="",
        adapter="",
        holdings="",
        versions=("torch=2",),
    )


@cache
def updates_of(name: str) -> dict[Any, Any]:
    generator = torch.Generator().manual_seed(NAMES.index(name))
    rank = introduction_of(name).ranks[0]
    return {
        shape.name: LowRankUpdate(
            torch.randn(shape.d_out, rank, generator=generator),
            torch.randn(rank, group.d_in, generator=generator),
        )
        for group in PLAN.groups
        for shape in group.layers
    }


@cache
def statistics_of(name: str, group_name: str) -> GroupStatistics:
    group = next(g for g in PLAN.groups if g.name == group_name)
    generator = torch.Generator().manual_seed(100 + NAMES.index(name))
    tokens = torch.randn(1, 20, group.d_in, generator=generator)
    accumulator = GroupAccumulator(group, MergeSettings())
    accumulator.update(tokens, torch.ones(1, 20, dtype=torch.bool))
    return accumulator.statistics(updates_of(name), FORM)


def reply_with(content: RecordDict, message: Message, context: Any) -> Message:
    """As a site's app replies: the content says what it is about."""
    asked, run = message.metadata, decode_run(message.content)
    name = context.node_config["name"]
    subject = Subject(run, asked.message_type, asked.group_id, str(context.node_id), name)
    return Message(with_subject(content, subject), reply_to=message)


class StubApp:
    """What a ClientApp is to a grid. Sites that restarted lack what was merged before."""

    def __init__(self) -> None:
        self.has = {name: set() for name in NAMES}

    def __call__(self, message: Message, context: Any) -> Message:
        name = context.node_config["name"]
        content = {
            "query.handshake": lambda: encode_introduction(introduction_of(name)),
            "train.statistics": lambda: self.statistics(name, message),
            "train.adapter": lambda: encode_updates(updates_of(name)),
        }[message.metadata.message_type]()
        return reply_with(content, message, context)

    def statistics(self, name: str, message: Message) -> RecordDict:
        return encode_answer(self.answer(name, message))

    def answer(self, name: str, message: Message) -> Answer:
        question = decode_question(message.content)
        self.has[name] |= set(question.merged)
        blank = Answer(name, question.run, question.step, question.plan, question.prefix)
        lacks = set(range(question.step)) - self.has[name]
        if lacks:
            return replace(blank, need_from=min(lacks))
        step = self.groups(question)[question.step]
        return replace(blank, statistics=tuple(statistics_of(name, g) for g in step))

    def groups(self, question: Question) -> list[Any]:
        if question.method == "com":
            return [[group.name] for group in PLAN.groups]
        return [["0.in", "0.out"], ["1.in", "1.out"]]


class RecordedApp(StubApp):
    """The same sites; what one has answered before is sent again as it was.

    Args:
        recording: contents of answers; shared by all runs, and nobody may change one.
    """

    def __init__(self, recording: dict[Any, Any]) -> None:
        super().__init__()
        self.recording = recording

    def statistics(self, name: str, message: Message) -> Any:
        about, sent = message.content["about"], message.content["merged"]
        self.has[name] |= {int(key.partition("/")[0]) for key in sent}
        lacks = min(set(range(about["step"])) - self.has[name], default=None)
        subject = (about[key] for key in ("run", "method", "step", "plan", "prefix"))
        key = (name, lacks, *subject)
        if key not in self.recording:
            self.recording[key] = super().statistics(name, message)
        return self.recording[key]


class MemoryJournal:
    def __init__(self) -> None:
        self.steps = []

    def load(self) -> list[Any]:
        return list(self.steps)

    def keep(self, step: Any) -> None:
        self.steps.append(step)


def settings(**entries: Any) -> RunSettings:
    usual = {"min-sites": 2, "timeout": 30.0, "deadline": 1e6, "merge": {"influence": False}}
    return validate_settings(usual | entries)


def new_chain(
    chosen: RunSettings,
    method: str = "com",
    journal: MemoryJournal | NumberedFiles[SolvedStep] | None = None,
    **changes: Any,
) -> ChainOfMerges:
    return ChainOfMerges(
        plan=PLAN,
        cohort=cohort.Cohort(
            {name: number for number, name in enumerate(NAMES, start=1)},
            {name: introduction_of(name) for name in NAMES},
            RUN,
            cohort.Patience.of(chosen),
        ),
        settings=chosen,
        method=method,
        run=RUN,
        form=FORM,
        remainder={},
        journal=journal or MemoryJournal(),
        **changes,
    )


def digest_of(chain: ChainOfMerges) -> str:
    """As a manifest's hash: over every figure of every group, and over the merged bits."""
    figures = [
        {k: v for k, v in vars(solution).items() if k != "updates"} | {"lost": solved.lost}
        for solved in chain.solved
        for solution in solved.solutions
    ]
    return hashlib.sha256(json.dumps([figures, chain.final_prefix]).encode()).hexdigest()
