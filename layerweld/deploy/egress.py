"""What a site would send in a run, said before it joins: by method, and with any of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerweld.plan import MergePlan
from layerweld.runtime.app_path import add_app_to_path
from layerweld.settings.methods import measuring_shift, methods_of
from layerweld.settings.run import RunSettings
from layerweld.settings.sites import SiteEntry
from layerweld.transport.arrays import bytes_of
from layerweld.transport.other_params import other_params_bytes
from layerweld.transport.updates import updates_layout
from layerweld.transport.uploads import IN_THE_HANDSHAKE, Upload, upload_of

_REFERENCES = 2  # the base model and the site's own are evaluated beside every merge


@dataclass(frozen=True)
class Egress:
    """What one site holds, and what it would send.

    Other sites can add to it: statistics are also taken of layers that only they fine-tuned, and
    one whole model among LoRAs makes everybody's products dense.

    Attributes:
        base: fingerprint of its base model.
        kind: ``lora``, ``full``, or ``none`` if it must fine-tune first.
        ranks: LoRA ranks, each once.
        layers: number of fine-tuned layers.
        samples: how many samples statistics are taken over.
        tokens: tokens in them.
        unreadable: how many samples were skipped.
        uploads: one for each method of the run.
        other_params_bytes: of norms, biases and embeddings of a whole model, sent once.
        held_out: how many samples accuracy is measured on; 0 if the site cannot measure it.
        models_evaluated: how many accuracies it sends, if all sites can.
        shifts: how many numbers of eq. 8 it sends.
        sites: how many are taken to be in the run.
        cache_bytes: what the site would keep on disk meanwhile.
    """

    base: str
    kind: str
    ranks: tuple[int, ...]
    layers: int
    samples: int
    tokens: int
    unreadable: int
    uploads: tuple[Upload, ...]
    other_params_bytes: int
    held_out: int
    models_evaluated: int
    shifts: int
    sites: int
    cache_bytes: int


def measure(entry: SiteEntry, settings: RunSettings) -> Egress:
    """Read a site's model, adapter and data as the handshake of a run would.

    Raises:
        LayerweldError: one of them cannot be read, or they do not belong together.
    """
    add_app_to_path()
    from client.handlers.site_info import site_info
    from client.state import SiteState

    methods = methods_of(settings)
    state = SiteState(entry, settings, "check")
    said = site_info(state)
    plan = state.plan.restricted_to(said.layers)
    ranks = said.rank_of
    held_out = state.data.held_out if said.evaluates else None
    other_params = state.adapter.task_vector.other_params if said.kind == "full" else {}
    return Egress(
        base=said.base,
        kind=said.kind,
        ranks=tuple(sorted({rank for rank in said.ranks if rank})),
        layers=len(said.layers),
        samples=said.calibration_samples,
        tokens=said.tokens,
        unreadable=said.skipped,
        uploads=tuple(upload_of(method, settings, plan, ranks) for method in methods),
        other_params_bytes=other_params_bytes(other_params),
        held_out=len(held_out or ()),
        models_evaluated=_REFERENCES + len(methods) if said.evaluates else 0,
        shifts=len(measuring_shift(settings)) * len(plan.groups),
        sites=settings.min_sites,
        cache_bytes=_cache_bytes(plan, ranks, said.tokens, state.base.d_model),
    )


def egress_lines(egress: Egress, entry: SiteEntry) -> Sequence[str]:
    """The same as lines for people."""
    ranks = f", rank {', '.join(map(str, egress.ranks))}" if egress.ranks else ""
    kinds = {"lora": "LoRA", "full": "fully fine-tuned model", "none": "to be trained here"}
    return (
        f"base model   {Path(entry.base).name}  fingerprint {egress.base[:12]}",
        f"adapter      {kinds[egress.kind]}{ranks}, {egress.layers} layers",
        f"data         {egress.samples:,} samples, {egress.tokens:,} tokens, "
        f"{egress.unreadable} unreadable",
        *(f"would send   {_of_method(upload, egress.sites)}" for upload in egress.uploads),
        *(f"besides      {what}" for what in _besides(egress)),
        f"would keep   {_size(egress.cache_bytes)} in {entry.cache}",
    )


def _of_method(upload: Upload, sites: int) -> str:
    groups, rounds = upload.group_bytes, upload.rounds
    each = f"{len(groups)} layer groups, {_size(max(groups))} the largest, " if groups else ""
    among = f" among {sites} sites" if upload.grows_with_sites else ""
    sends = ", ".join(upload.sends)
    alone = f"to the server alone: {sends}"
    to = f"to the server: {sends}; to every other site: ΔW" if upload.method.kind.shares else alone
    return (
        f"{upload.method.name}: {each}{_size(upload.num_bytes)} a merge{among}, "
        f"{rounds:,} round{'s' if rounds > 1 else ''}; {to}"
    )


def _besides(egress: Egress) -> Iterator[str]:
    """What goes to the server with any method."""
    yield IN_THE_HANDSHAKE
    if egress.other_params_bytes:
        yield f"once: {_size(egress.other_params_bytes)} of norms, biases and embeddings"
    if egress.models_evaluated:
        yield (
            f"accuracy of {egress.models_evaluated} models on {egress.held_out:,} held-out "
            f"samples, if all sites can evaluate"
        )
    if egress.shifts:
        yield f"covariate shift: {egress.shifts:,} numbers"


def _cache_bytes(plan: MergePlan, ranks: Mapping[str, int], tokens: int, d_model: int) -> int:
    """Two blocks' inputs, and merged updates as of eight sites."""
    hidden = bytes_of({"hidden states": (2, tokens, d_model)})
    return hidden + 8 * updates_layout(plan, ranks).num_bytes


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
