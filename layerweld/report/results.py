"""What a run found out, as values: report, tables and ``results.json`` are made of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Form = Literal["adapter", "model"]


@dataclass(frozen=True)
class SiteSummary:
    """One site as the handshake described it."""

    name: str
    samples: int
    tokens: int
    adapter: str
    """``lora`` or ``full``."""
    rank: int
    """Largest LoRA rank; 0 for full fine-tuning."""


@dataclass(frozen=True)
class GroupMetrics:
    """How far the solution of one layer group can be trusted, and who shaped it."""

    name: str
    step: int
    layers: tuple[str, ...]
    d_in: int
    tokens: Mapping[str, int]
    """Calibration tokens per site."""
    importance: Mapping[str, float]
    """ω per site."""
    condition: float
    """Of S + λI after diagonal scaling."""
    ridge: float
    """λ, in units of S."""
    residual: float
    """Σ_i ω_i tr[(ΔW_M - ΔW_i) G_i (…)ᵀ] / Σ_i ω_i tr[ΔW_i G_i ΔW_iᵀ]: what of the sites'
    updates the merged layer could not reproduce; 0 is perfect, the base model scores 1."""
    compression_error: float
    """‖(ΔW_M - ΔW_rank) S^½‖ / ‖ΔW_M S^½‖, Frobenius; 0 where nothing was compressed."""
    bytes_up: Mapping[str, int]
    """Bytes of statistics each site sent."""
    covariate_shift: Mapping[str, float] = field(default_factory=dict)
    """Eq. 8 per site; empty unless the run measured it."""
    influence: Mapping[str, float] = field(default_factory=dict)
    """How far each site moves the merge of the others, relative and in the metric of S. Empty
    unless the run asked for it."""
    agreement: Mapping[str, float] = field(default_factory=dict)
    """Cosine, on each site's own tokens, between its update and the merge of the others, from -1 to
    1. Empty as ``influence``."""
    capped: Mapping[str, float] = field(default_factory=dict)
    """Factor by which a site's weight was taken down, of the sites that it was; ω has it in it."""
    lost: tuple[str, ...] = ()
    """Sites of the run that are not in this group."""


@dataclass(frozen=True)
class Score:
    """Held-out accuracy of one model at one site."""

    accuracy: float
    samples: int


@dataclass(frozen=True)
class MethodResult:
    """One model of the comparison: a merge, or a reference (base, individual)."""

    name: str
    """Short and stable: ``base``, ``individual``, ``mean``, ``com`` …"""
    label: str
    """For humans: ``Chain of Merges``."""
    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    scores: Mapping[str, Score]
    """By site; empty when the run did not evaluate."""
    groups: tuple[GroupMetrics, ...] = ()
    """In solving order; empty for methods without statistics."""
    outliers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Groups, by site, that the site moves more than three times as far as the median site."""
    opposed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Groups, by site, in which its update does the opposite of what the others merge to."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the method says about itself on these sites' models: errors, scales."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """Sites that are not in all of it, each with the first round without it, counted from 1."""


@dataclass(frozen=True)
class RunResults:
    """Everything the report shows."""

    name: str
    base: str
    """Name of the base model's folder."""
    sites: tuple[SiteSummary, ...]
    methods: tuple[MethodResult, ...]
    chosen: str
    """Name of the method whose merge was written out."""
    form: Form
    """What it was written as."""
    settings: Mapping[str, object]
    manifest_hash: str
    versions: Mapping[str, str]
    lost: Mapping[str, str] = field(default_factory=dict)
    """Why each site that the run went on without was given up."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Replies that were dropped, by kind: ``stale``, ``duplicate``, ``foreign``, ``refused`` …"""
    prefix: str = ""
    """What the names of the adapters' layers began with, by the class that the sites trained."""
    task: str = ""
    """PEFT's task type that all sites' adapters name, as ``CAUSAL_LM``."""

    def method(self, name: str) -> MethodResult | None:
        """The result of that name, if the run has it."""
        return next((result for result in self.methods if result.name == name), None)
