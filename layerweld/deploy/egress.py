"""What a site would send in a run, said before it joins: groups, and bytes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerweld.config import RunSettings
from layerweld.launch import app_module
from layerweld.plan import LayerGroup, MergePlan
from layerweld.sites import SiteEntry


@dataclass(frozen=True)
class Egress:
    """What one site holds, and what it would send.

    Attributes:
        base: fingerprint of its base model.
        kind: ``lora``, ``full``, or ``none`` where it must fine-tune first.
        ranks: LoRA ranks, each once.
        layers: number of fine-tuned layers.
        rows: rows that statistics are taken over.
        tokens: tokens in them.
        unreadable: rows that were passed over.
        group_bytes: bytes sent for each layer group, one round each in a chain.
        cache_bytes: what the site would keep on disk meanwhile.
    """

    base: str
    kind: str
    ranks: tuple[int, ...]
    layers: int
    rows: int
    tokens: int
    unreadable: int
    group_bytes: tuple[int, ...]
    cache_bytes: int


def measure(entry: SiteEntry, settings: RunSettings) -> Egress:
    """Read a site's model, adapter and rows as the handshake of a run would.

    Raises:
        LayerweldError: one of them cannot be read, or they do not belong together.
    """
    state = app_module("client.state").SiteState(entry, settings, "check")
    said = app_module("client.handshake").introduce(state)
    plan: MergePlan = state.plan.restricted_to(said.layers)
    ranks = dict(zip(said.layers, said.ranks, strict=True))
    hidden = 4 * said.tokens * state.base.d_model
    updates = sum(_product_bytes(group, ranks) for group in plan.groups)
    return Egress(
        base=said.base,
        kind=said.kind,
        ranks=tuple(sorted({rank for rank in said.ranks if rank})),
        layers=len(said.layers),
        rows=said.samples,
        tokens=said.tokens,
        unreadable=said.skipped,
        group_bytes=tuple(g.gram_bytes + _product_bytes(g, ranks) for g in plan.groups),
        cache_bytes=2 * hidden + 8 * updates,  # two blocks' inputs; merged updates of many sites
    )


def lines(egress: Egress, entry: SiteEntry) -> Sequence[str]:
    """As a person reads it."""
    ranks = f", rank {', '.join(map(str, egress.ranks))}" if egress.ranks else ""
    kinds = {"lora": "LoRA", "full": "fully fine-tuned model", "none": "to be trained here"}
    sent = egress.group_bytes
    return (
        f"base model   {Path(entry.base).name}  fingerprint {egress.base[:12]}",
        f"adapter      {kinds[egress.kind]}{ranks}, {egress.layers} layers",
        f"data         {egress.rows:,} rows, {egress.tokens:,} tokens, "
        f"{egress.unreadable} unreadable",
        f"would send   {len(sent)} layer groups, {_size(max(sent))} the largest, "
        f"{_size(sum(sent))} a merge",
        f"would keep   {_size(egress.cache_bytes)} in {entry.cache}",
    )


def _product_bytes(group: LayerGroup, ranks: dict[str, int]) -> int:
    total = 0
    for layer in group.layers:
        rank = ranks[layer.name]
        values = rank * (layer.d_out + group.d_in) if rank else layer.d_out * group.d_in
        total += 4 * values
    return total


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
