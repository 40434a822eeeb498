"""A federation without models: sites that answer at once with statistics drawn beforehand."""

import hashlib
import json
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from layerweld.plan import LayerGroup, LayerShape, MergePlan
from layerweld.runtime.incidents import Incident, parse_incident
from layerweld.settings.merge import MergeSettings
from layerweld.settings.methods import method_named
from layerweld.settings.run import RunSettings, validate_settings
from layerweld.statistics.group import GroupAccumulator, GroupStatistics, ProductForm
from layerweld.transport.identity import identity_of, with_identity
from layerweld.transport.site_info import SiteInfo, encode_site_info
from layerweld.transport.statistics import (
    StatisticsReply,
    decode_statistics_request,
    encode_statistics,
)
from layerweld.transport.step_context import StepContext
from layerweld.transport.updates import encode_updates
from layerweld.updates.update import LowRankUpdate
from strategies.chain_of_merges import ChainRounds
from strategies.cohort import Cohort, Patience
from strategies.merge_strategy import MergeStrategy

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
def site_info_of(name: str) -> SiteInfo:
    return SiteInfo(
        site=name,
        base="b",
        tokenizer="t",
        plan=PLAN.digest,
        settings="s",
        kind="lora",
        layers=PLAN.layer_names,
        ranks=(1 + NAMES.index(name) % 2,) * len(PLAN.layer_names),
        name_prefix="",
        task="",
        samples=3,
        calibration_samples=3,
        tokens=20,
        skipped=0,
        evaluates=False,
        classifies=True,
        labelled=False,
        factors="",
        adapter="",
        dataset="",
        versions=("torch=2",),
    )


@cache
def updates_of(name: str) -> dict[Any, Any]:
    generator = torch.Generator().manual_seed(NAMES.index(name))
    rank = site_info_of(name).ranks[0]
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
    node, name = str(context.node_id), context.node_config["name"]
    identity = replace(identity_of(message.content), node=node, site=name)
    return Message(with_identity(content, identity), reply_to=message)


def incident_of(reply: Message) -> Incident:
    """What a site says of its error."""
    incident = parse_incident(reply.error.reason)
    assert incident
    return incident


def step_of(message: Message) -> int:
    """The step whose statistics a message asks for."""
    return decode_statistics_request(message.content).context.step


class StubApp(ClientApp):
    """What a ClientApp is to a grid. Sites that restarted lack what was merged before."""

    def __init__(self) -> None:
        super().__init__()
        self.has: dict[str, set[int]] = {name: set() for name in NAMES}

    def __call__(self, message: Message, context: Any) -> Message:
        name = context.node_config["name"]
        content = {
            "query.handshake": lambda: encode_site_info(site_info_of(name)),
            "train.statistics": lambda: self.statistics(name, message),
            "train.adapter": lambda: encode_updates(updates_of(name)),
        }[message.metadata.message_type]()
        return reply_with(content, message, context)

    def statistics(self, name: str, message: Message) -> RecordDict:
        return encode_statistics(self.reply(name, message))

    def reply(self, name: str, message: Message) -> StatisticsReply:
        asked = decode_statistics_request(message.content).context
        self.has[name] |= set(asked.merged)
        lacks = set(range(asked.step)) - self.has[name]
        if lacks:
            return StatisticsReply(need_from=min(lacks))
        step = self.groups(asked)[asked.step]
        return StatisticsReply(tuple(statistics_of(name, g) for g in step))

    def groups(self, asked: StepContext) -> list[Any]:
        if asked.method == "com":
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

    def statistics(self, name: Any, message: Message) -> Any:
        about: Any = message.content["about"]
        sent = message.content.array_records["merged"]
        self.has[name] |= {int(key.partition("/")[0]) for key in sent}
        lacks = min(set(range(about["step"])) - self.has[name], default=None)
        subject = (about[key] for key in ("run", "method", "step", "plan", "chain_digest"))
        key = (name, lacks, *subject)
        if key not in self.recording:
            self.recording[key] = super().statistics(name, message)
        return self.recording[key]


class MemoryJournal:
    def __init__(self) -> None:
        self.rounds: list[Any] = []

    def load(self) -> list[Any]:
        return list(self.rounds)

    def keep(self, round_: Any) -> None:
        self.rounds.append(round_)


def settings(**entries: Any) -> RunSettings:
    usual = {"min-sites": 2, "timeout": 30.0, "deadline": 1e6, "merge": {"influence": False}}
    return validate_settings(usual | entries)


def new_cohort(chosen: RunSettings) -> Cohort:
    return Cohort(
        {name: number for number, name in enumerate(NAMES, start=1)},
        {name: site_info_of(name) for name in NAMES},
        RUN,
        Patience.of(chosen),
    )


def new_chain(chosen: RunSettings, method: str = "com", journal: Any = None) -> MergeStrategy:
    """The strategy that runs a chain."""
    cohort = new_cohort(chosen)
    rounds = ChainRounds(method_named(method, chosen), PLAN, cohort, chosen, {})
    return MergeStrategy(cohort, rounds, journal or MemoryJournal())


def digest_of(chain: Any) -> Any:
    """As a manifest's hash: over every metric of every group but its bytes, and the merged bits."""
    metrics = [
        {key: value for key, value in group.items() if key != "bytes_up"}
        for step in chain.rounds.groups
        for group in step
    ]
    text = json.dumps([metrics, chain.rounds.digests[-1]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
