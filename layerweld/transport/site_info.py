"""What a site says of itself in the handshake, and again once it has trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from layerweld.transport.identity import ABOUT, reply_layout
from layerweld.transport.layout import Budget, Entries, Flag, Layout, Many, Text, Whole
from layerweld.transport.step_context import LAYERS
from layerweld.transport.untrusted import packed, refusing_malformed, unpacked

HANDSHAKE, FINE_TUNING = "query.handshake", "train.finetune"
"""Flower's types of the two messages; their requests say no more than what they are about."""

_FIELDS: Entries = {
    **dict.fromkeys(("site", "base", "tokenizer", "plan", "settings", "kind"), Text()),
    **dict.fromkeys(("name_prefix", "task", "factors", "adapter", "dataset"), Text()),
    **dict.fromkeys(("samples", "calibration_samples", "tokens", "skipped"), Whole(low=-1)),
    **dict.fromkeys(("evaluates", "classifies", "labelled"), Flag()),
    "layers": LAYERS,
    "ranks": Many(Whole(low=-1), LAYERS.most),
    "versions": Many(Text(100), 64),
    "environment": Many(Text(300), 64),
}

_LAYOUT = reply_layout(Layout({ABOUT: _FIELDS}))

SITE_INFO_BUDGET = Budget(4 * 2**20, 8)
"""What the reply may take; no plan says yet how many layers a site has."""


@dataclass(frozen=True)
class SiteInfo:
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
        name_prefix: what the site's adapter names put before the backbone's, e.g. ``bert.``.
        task: PEFT's task type of its adapter, as ``CAUSAL_LM``; empty where it names none.
        samples: readable samples that the site has to train on.
        calibration_samples: those of them that were drawn to take statistics over.
        tokens: calibration tokens.
        skipped: unreadable samples that were passed over.
        evaluates: whether the site can measure held-out accuracy.
        classifies: whether the site has a head.
        labelled: whether it has labels for its calibration samples as well.
        factors: SHA-256 over all ``A`` of a LoRA, or over what draws it, so that sites that share
            a frozen ``A`` are known (:mod:`layerweld.updates.shared_factor`); empty otherwise.
        adapter: digest of the adapter or model that the site brings; empty where it has none yet.
        dataset: digest of all its samples, held-out samples and head together.
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
    name_prefix: str
    task: str
    samples: int
    calibration_samples: int
    tokens: int
    skipped: int
    evaluates: bool
    classifies: bool
    labelled: bool
    factors: str
    adapter: str
    dataset: str
    versions: tuple[str, ...]
    environment: tuple[str, ...] = field(default=(), compare=False)

    @property
    def rank_of(self) -> dict[str, int]:
        """LoRA rank by layer; 0 where the whole layer changed."""
        return dict(zip(self.layers, self.ranks, strict=True))


FOUND_OUT_BY_TRAINING = (
    "kind", "layers", "ranks", "name_prefix", "task", "evaluates", "classifies", "labelled",
    "factors", "adapter", "dataset",
)  # fmt: skip
"""What a site that fine-tunes first can only say of itself afterwards."""


def differing(one: SiteInfo, other: SiteInfo) -> list[str]:
    """The fields in which a site says something else of itself."""
    return [name for name, value in facts_of(one).items() if value != getattr(other, name)]


def facts_of(info: SiteInfo) -> dict[str, Any]:
    """What stays the same of a site for as long as a run takes, by field."""
    return {one.name: getattr(info, one.name) for one in fields(info) if one.compare}


def encode_site_info(info: SiteInfo) -> RecordDict:
    """A reply to the handshake, or to the request to train."""
    return RecordDict({ABOUT: ConfigRecord(packed(info, _FIELDS))})


def decode_site_info(content: RecordDict) -> SiteInfo:
    """Inverse of :func:`encode_site_info`, with every field's type checked.

    Raises:
        RefusedReplyError: a field is missing, has another type or is too long, or something else
            came along.
    """
    with refusing_malformed():
        _LAYOUT.check(content)
        return site_info_from(content.config_records[ABOUT])


def site_info_from(record: Mapping[str, Any]) -> SiteInfo:
    """Site info from its fields: a Flower record's, or those of :func:`facts_of` out of JSON.

    Raises:
        KeyError: a field is missing.
        ValueError: a field has another type, or is out of its bounds.
    """
    names = [name for name in _FIELDS if name != "environment" or name in record]
    for name in names:
        _FIELDS[name].check(record[name])
    return SiteInfo(**unpacked(record, names))
