"""What was merged before a step: kept, checked by hash, and pushed through the model's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from client.store import SiteStore
from layerweld.collect import HiddenStates, ReplayableModel, entering_first, propagate
from layerweld.errors import RefusedReplyError
from layerweld.prefix import extend_prefix, first_prefix
from layerweld.replay import RecordedBatch
from layerweld.schedule import Step
from layerweld.updates import Update


class AsksBehind(Protocol):
    """A question about a step, with what the site may lack of what was merged before it."""

    @property
    def step(self) -> int:
        """Index of the step in the schedule."""

    @property
    def plan(self) -> str:
        """Digest of the plan."""

    @property
    def prefix(self) -> str:
        """Hash over everything merged before the step."""

    @property
    def averaged(self) -> bool:
        """Whether a remainder was averaged before the first step."""

    @property
    def remainder(self) -> Mapping[str, Tensor]:
        """The averaged remainder, where it is sent."""

    @property
    def merged(self) -> Mapping[int, Mapping[str, Update]]:
        """Updates of earlier steps, where they are sent."""


class LacksMerged(Exception):
    """The site must be sent what was merged from a step on (-1: the remainder too)."""

    def __init__(self, first: int) -> None:
        super().__init__(first)
        self.first = first


@dataclass(frozen=True)
class MergedPrefix:
    """Everything merged before a step, as the server has it to the bit.

    Attributes:
        remainder: the averaged one; empty for LoRA.
        merged: updates by step, of the steps that this one needs.
        hashes: before the first needed step, and after each one since.
    """

    remainder: dict[str, Tensor]
    merged: dict[int, dict[str, Update]]
    hashes: tuple[str, ...]

    @cached_property
    def updates(self) -> dict[str, Update]:
        """All updates that are in place, by layer."""
        return {layer: u for updates in self.merged.values() for layer, u in updates.items()}

    def hidden_before(
        self,
        model: ReplayableModel,
        recording: Sequence[RecordedBatch],
        steps: Sequence[Step],
        step: Step,
        store: SiteStore,
    ) -> HiddenStates:
        """Hidden states that enter the step's first block: kept, or rebuilt from what is."""
        if step.restarts:
            return entering_first(model, recording, step)
        entry = [batch.entry for batch in recording]
        wanted = step.groups[0].block
        hidden, block = entry, 0
        for candidate in range(wanted, 0, -1):
            kept = store.load_hidden(candidate, self._hash_before(candidate, steps))
            if kept is not None:
                device = entry[0].device
                hidden, block = [states.to(device) for states in kept], candidate
                break
        if block == wanted:
            return hidden
        for index in range(block, wanted):
            hidden = propagate(model, recording, hidden, index, self.updates)
        store.save_hidden(wanted, self._hash_before(wanted, steps), hidden)
        return hidden

    def _hash_before(self, block: int, steps: Sequence[Step]) -> str:
        """The hash after the last step that merged anything before this block."""
        done = sum(1 for step in steps if step.groups[-1].block < block)
        return self.hashes[done]


def merged_prefix(
    question: AsksBehind, step: Step, plan: str, settings: str, store: SiteStore
) -> MergedPrefix:
    """Keep what a question brought, and put together what was merged before its step.

    Args:
        question: asked.
        step: its step.
        plan: digest of the plan that this site's model gives.
        settings: digest of the settings.
        store: of this run, site and method.

    Raises:
        LacksMerged: something is missing, or is not what was merged.
        RefusedReplyError: the plan or the prefix is not what this site computes from the same
            model and the same merged updates.
    """
    if plan != question.plan:
        raise RefusedReplyError(
            f"the server merges by plan {question.plan[:12]}, this site's base model gives "
            f"{plan[:12]}: the models differ"
        )
    if question.remainder:
        store.save_remainder(question.remainder)
    for index, updates in question.merged.items():
        store.save_step(index, updates)
    remainder, merged = _kept(question, step, store)
    hashes = [first_prefix(plan, settings, remainder)]
    for index in sorted(merged):
        hashes.append(extend_prefix(hashes[-1], merged[index]))
    if hashes[-1] != question.prefix:
        if set(step.needs) - set(question.merged):
            raise LacksMerged(-1)  # what is on disk is not what was merged
        raise RefusedReplyError(
            f"step {question.step} is asked behind prefix {question.prefix[:12]}, but the merged "
            f"updates received give {hashes[-1][:12]}"
        )
    return MergedPrefix(remainder, merged, tuple(hashes))


def _kept(
    question: AsksBehind, step: Step, store: SiteStore
) -> tuple[dict[str, Tensor], dict[int, dict[str, Update]]]:
    remainder = store.load_remainder() if question.averaged else {}
    if remainder is None:
        raise LacksMerged(-1)
    merged: dict[int, dict[str, Update]] = {}
    for index in step.needs:
        updates = store.load_step(index)
        if updates is None:
            raise LacksMerged(index)
        merged[index] = updates
    return remainder, merged
