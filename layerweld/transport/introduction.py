"""A site's introduction as a Flower record, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from layerweld.transport.layout import Budget, Entries, Flag, Layout, Many, Text, Whole
from layerweld.transport.messages import Introduction
from layerweld.transport.run import ABOUT
from layerweld.transport.subject import reply_layout
from layerweld.transport.untrusted import read, read_list, refusing_malformed

_MOST_LAYERS = 2**15  # more than any mixture of experts has
_ABOUT: Entries = {
    **dict.fromkeys(("site", "base", "tokenizer", "plan", "settings", "kind"), Text()),
    **dict.fromkeys(("prefix", "task", "factors", "adapter", "holdings"), Text()),
    **dict.fromkeys(("rows", "samples", "tokens", "skipped"), Whole(low=-1)),
    **dict.fromkeys(("evaluates", "classifies", "labelled"), Flag()),
    "layers": Many(Text(300), _MOST_LAYERS),
    "ranks": Many(Whole(low=-1), _MOST_LAYERS),
    "versions": Many(Text(100), 64),
    "environment": Many(Text(300), 64),
}

_LAYOUT = reply_layout(Layout({ABOUT: _ABOUT}))

BUDGET = Budget(4 * 2**20, 8)
"""What an introduction may take; no plan says yet how many layers a site has."""


def encode_introduction(introduction: Introduction) -> RecordDict:
    """The handshake's reply."""
    entries = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(introduction).items()}
    return RecordDict({ABOUT: ConfigRecord(entries)})


def decode_introduction(content: RecordDict) -> Introduction:
    """Inverse of :func:`encode_introduction`, with every field's type checked.

    Raises:
        RefusedReplyError: a field is missing, has another type or is too long, or something else
            came along.
    """
    with refusing_malformed():
        _LAYOUT.check(content)
        return introduction_from(content.config_records[ABOUT])


def introduction_from(about: Mapping[str, Any]) -> Introduction:
    """An introduction from its fields: a Flower record's, or a JSON object's.

    Raises:
        KeyError: a field is missing.
        TypeError: a field has another type.
    """
    return Introduction(
        site=read(about, "site", str),
        base=read(about, "base", str),
        tokenizer=read(about, "tokenizer", str),
        plan=read(about, "plan", str),
        settings=read(about, "settings", str),
        kind=read(about, "kind", str),
        prefix=read(about, "prefix", str),
        task=read(about, "task", str),
        rows=read(about, "rows", int),
        samples=read(about, "samples", int),
        tokens=read(about, "tokens", int),
        skipped=read(about, "skipped", int),
        evaluates=read(about, "evaluates", bool),
        classifies=read(about, "classifies", bool),
        labelled=read(about, "labelled", bool),
        factors=read(about, "factors", str),
        adapter=read(about, "adapter", str),
        holdings=read(about, "holdings", str),
        layers=tuple(read_list(about, "layers", str)),
        ranks=tuple(read_list(about, "ranks", int)),
        versions=tuple(read_list(about, "versions", str)),
        environment=tuple(read_list(about, "environment", str)) if "environment" in about else (),
    )
