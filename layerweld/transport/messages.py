"""What the server and the sites say to each other, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from layerweld.statistics.group import GroupStatistics, ProductForm
from layerweld.updates.update import Update


@dataclass(frozen=True)
class Introduction:
    """What a site says of itself in the handshake, before anything is computed.

    Attributes:
        site: the site's name, unique in the cohort.
        base: fingerprint of the base model's weights.
        tokenizer: fingerprint of the tokenizer or image processor.
        plan: digest of the whole model's merge plan.
        settings: digest of the settings that decide the merged bits.
        kind: ``lora``, ``full``, or ``none`` where the site must fine-tune first.
        layers: the layers that the site fine-tuned, in the plan's order.
        ranks: their LoRA ranks; 0 for full fine-tuning.
        prefix: what the site's adapter names put before the backbone's, e.g. ``bert.``.
        task: PEFT's task type of its adapter, as ``CAUSAL_LM``; empty where it names none.
        rows: readable rows that the site has to train on.
        samples: calibration rows that were drawn from them.
        tokens: calibration tokens.
        skipped: unreadable rows that were passed over.
        evaluates: whether the site can measure held-out accuracy.
        classifies: whether the site has a head.
        labelled: whether it has labels for its calibration rows as well.
        factors: SHA-256 over all ``A`` of a LoRA, or over what draws it, so that sites that share
            a frozen ``A`` are known (:mod:`layerweld.updates.shared_factor`); empty otherwise.
        adapter: digest of the adapter or model that the site brings; empty where it has none yet.
        holdings: digest of all its rows, held-out rows and head together.
        versions: ``name=version`` of the packages that matter.
        environment: ``name=value`` of what decides the last digits there. It is recorded and never
            compared: a site may come back on another machine.
    """

    site: str
    base: str
    tokenizer: str
    plan: str
    settings: str
    kind: str
    layers: tuple[str, ...]
    ranks: tuple[int, ...]
    prefix: str
    task: str
    rows: int
    samples: int
    tokens: int
    skipped: int
    evaluates: bool
    classifies: bool
    labelled: bool
    factors: str
    adapter: str
    holdings: str
    versions: tuple[str, ...]
    environment: tuple[str, ...] = field(default=(), compare=False)


FOUND_OUT_BY_TRAINING = (
    "kind", "layers", "ranks", "prefix", "task", "evaluates", "classifies", "labelled", "factors",
    "adapter", "holdings",
)  # fmt: skip
"""What a site that fine-tunes first can only say of itself afterwards."""


def differing(one: Introduction, other: Introduction) -> list[str]:
    """The fields in which a site says something else of itself."""
    return [name for name, value in facts_of(one).items() if value != getattr(other, name)]


def facts_of(introduction: Introduction) -> dict[str, Any]:
    """What stays the same of a site for as long as a run takes, by field."""
    return {
        one.name: getattr(introduction, one.name) for one in fields(introduction) if one.compare
    }


@dataclass(frozen=True)
class Subject:
    """What a reply is about, as the site understood it: no other reply has the same.

    Attributes:
        run: identifies the run.
        kind: Flower's type of the message.
        question: as it is called; what one kind calls the same in a run has the same answer.
        node: Flower's id of the node that answers, in digits: records hold no number as large.
        site: who answers.
    """

    run: str
    kind: str
    question: str
    node: str
    site: str


@dataclass(frozen=True)
class Question:
    """The server's request for the statistics of one step.

    Attributes:
        run: identifies the run; sites keep their state under it.
        method: name of the chain variant being played, see :mod:`layerweld.settings.methods`.
        step: index of the step in the schedule.
        layers: the layers being merged; with the model they give the plan.
        plan: digest of that plan.
        prefix: hash over everything merged before this step.
        form: how products travel.
        averaged: whether a remainder was averaged before the chain began.
        remainder: the averaged remainder of full fine-tuning; only where the site may lack it.
        merged: updates of earlier steps, by step; only what the site may lack.
    """

    run: str
    method: str
    step: int
    layers: tuple[str, ...]
    plan: str
    prefix: str
    form: ProductForm
    averaged: bool
    remainder: Mapping[str, Tensor] = field(default_factory=dict)
    merged: Mapping[int, Mapping[str, Update]] = field(default_factory=dict)

    def catching_up(
        self, remainder: Mapping[str, Tensor], merged: Mapping[int, Mapping[str, Update]]
    ) -> Question:
        """The same question with more of what was merged before."""
        return replace(self, remainder=remainder, merged=merged)


@dataclass(frozen=True)
class Answer:
    """A site's reply to one :class:`Question`.

    Attributes:
        site: who answers.
        run, step, plan, prefix: of the question, sent back.
        statistics: of every group of the step; empty if the site must catch up first.
        need_from: first step whose merged updates the site lacks (-1: the remainder too), if any.
    """

    site: str
    run: str
    step: int
    plan: str
    prefix: str
    statistics: tuple[GroupStatistics, ...] = ()
    need_from: int | None = None


@dataclass(frozen=True)
class ModelToMeasure:
    """A model that sites shall evaluate, or compare their own inputs with.

    Attributes:
        run: identifies the run.
        kind: ``base``, each site's ``individual`` one, or ``merged``.
        layers: the layers being merged.
        updates: the merged updates, by layer; empty unless ``merged``.
        remainder: the averaged remainder; empty unless ``merged`` from full fine-tuning.
    """

    run: str
    kind: str
    layers: tuple[str, ...]
    updates: Mapping[str, Update] = field(default_factory=dict)
    remainder: Mapping[str, Tensor] = field(default_factory=dict)
