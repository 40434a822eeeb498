"""What server and sites say to each other while coefficients are learnt: plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from layerweld.updates.digest import extend_prefix
from layerweld.updates.update import Update

UpdatesBySite = Mapping[str, Mapping[str, Update]]
"""``ΔW`` by site, then by layer."""


@dataclass(frozen=True)
class CoefficientQuestion:
    """The server's request for the gradient of a site's entropy by all coefficients.

    Attributes:
        run: identifies the run; sites keep the updates under it.
        method: name of the method being played.
        round: number of the round, from 1; with a seed it decides which rows are drawn.
        layers: columns of the coefficients.
        sites: rows of the coefficients.
        held: hash of the updates and the remainder that a site must hold to answer.
        averaged: whether a remainder is among what it must hold.
        coefficients: ``(sites, layers)``, float32.
        updates: of all sites; only where the site may lack them.
        remainder: the averaged remainder of full fine-tuning; likewise.
    """

    run: str
    method: str
    round: int
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    held: str
    averaged: bool
    coefficients: Tensor
    updates: UpdatesBySite = field(default_factory=dict)
    remainder: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that an answer depends on; the answer gives it back."""
        about = (self.run, self.method, self.round, self.layers, self.sites, self.held)
        numbers = self.coefficients.contiguous().numpy().tobytes()
        return hashlib.sha256(f"{about}".encode() + numbers).hexdigest()

    def with_updates(
        self, updates: UpdatesBySite, remainder: Mapping[str, Tensor]
    ) -> CoefficientQuestion:
        """The same question to a site that may lack them."""
        return replace(self, updates=updates, remainder=remainder)


@dataclass(frozen=True)
class CoefficientAnswer:
    """A site's reply to one :class:`CoefficientQuestion`.

    Attributes:
        site: who answers.
        question: the question's digest.
        lacks: whether the site must be sent the updates first; the rest is empty then.
        entropy: mean entropy of the head's predictions over the round's rows, in nats.
        gradient: of it by the coefficients, ``(sites, layers)``, float32.
    """

    site: str
    question: str
    lacks: bool
    entropy: float
    gradient: Tensor


@dataclass(frozen=True)
class BlockQuestion:
    """The server's request for the gradient of a block's distance by the weights of its layers.

    Attributes:
        run: identifies the run; sites keep their state under it.
        method: name of the method being played.
        step: index of the block among those that have layers to merge.
        round: of the block's descent, from 0.
        layers: the layers being merged; with the model they give the plan.
        plan: digest of that plan.
        prefix: hash over everything merged before this block.
        averaged: whether a remainder was averaged before the first block.
        updates: the block's merged updates, as the coefficients are now.
        remainder: the averaged remainder of full fine-tuning; only where the site may lack it.
        merged: updates of earlier blocks, by step; only what the site may lack.
    """

    run: str
    method: str
    step: int
    round: int
    layers: tuple[str, ...]
    plan: str
    prefix: str
    averaged: bool
    updates: Mapping[str, Update]
    remainder: Mapping[str, Tensor] = field(default_factory=dict)
    merged: Mapping[int, Mapping[str, Update]] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that an answer depends on; the answer gives it back."""
        about = (self.run, self.method, self.step, self.round, self.layers, self.plan, self.prefix)
        return extend_prefix(f"{about}", self.updates)


@dataclass(frozen=True)
class BlockAnswer:
    """A site's reply to one :class:`BlockQuestion`.

    Attributes:
        site: who answers.
        question: the question's digest.
        need_from: first step whose merged updates the site lacks (-1: the remainder too), if any;
            the rest is empty then.
        distance: mean over the site's rows of the squared distance to its own block's output.
        gradients: of it by the weight of each layer of the block, ``(d_out, d_in)``, float32.
    """

    site: str
    question: str
    need_from: int | None = None
    distance: float = 0.0
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
