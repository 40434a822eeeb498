"""What was merged before a step: kept, proven by hash, and pushed through the model's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from client.handlers.merged_steps import LacksMerged, MergedSteps
from client.store import SiteStore
from layerweld.errors import RefusedReplyError
from layerweld.model.collect import HiddenStates, ReplayableModel, entering_first, propagate
from layerweld.model.replay import RecordedBatch
from layerweld.model.schedule import Step
from layerweld.transport.step_context import StepContext
from layerweld.updates.named_tensors import first_digest
from layerweld.updates.update import Update


@dataclass(frozen=True)
class MergedPrefix:
    """Everything merged before a step, as the server has it to the bit.

    Attributes:
        other_params: the averaged ones; empty for LoRA.
        step: the one that is asked about.
        steps: of its chain.
        merged: the steps that it needs.
        store: keeps hidden states.
    """

    other_params: dict[str, Tensor]
    step: Step
    steps: Sequence[Step]
    merged: MergedSteps
    store: SiteStore

    @property
    def updates(self) -> dict[str, Update]:
        """The updates that are in place in the step's own blocks, by layer.

        Raises:
            LacksMerged: a step that they are of is missing or damaged.
        """
        return self.merged.updates_since(self._begin_of(self.step.groups[0].block))

    def hidden_before(
        self, model: ReplayableModel, recording: Sequence[RecordedBatch]
    ) -> HiddenStates:
        """Hidden states that enter the step's first block: kept, or rebuilt from what is.

        Raises:
            LacksMerged: a step that they are rebuilt from is missing or damaged.
        """
        if self.step.restarts:
            return entering_first(model, recording, self.step)
        entry = [batch.entry for batch in recording]
        wanted = self.step.groups[0].block
        hidden, block = entry, 0
        for candidate in range(wanted, 0, -1):
            kept = self.store.load_hidden(candidate, self._hash_before(candidate))
            if kept is not None:
                device = entry[0].device
                hidden, block = [states.to(device) for states in kept], candidate
                break
        if block == wanted:
            return hidden
        updates = self.merged.updates_since(self._begin_of(block))
        for index in range(block, wanted):
            hidden = propagate(model, recording, hidden, index, updates)
        self.store.save_hidden(wanted, self._hash_before(wanted), hidden)
        return hidden

    def _begin_of(self, block: int) -> int:
        """The first step that is needed for what is merged in this block and later ones."""
        if self.step.restarts:
            return self.step.needs.start
        return sum(1 for step in self.steps if step.groups[-1].block < block)

    def _hash_before(self, block: int) -> str:
        """The hash after the last step that merged anything before this block."""
        return self.merged.hash_before(self._begin_of(block))


def step_of(index: int, steps: Sequence[Step]) -> Step:
    """The step that a request is about.

    Raises:
        RefusedReplyError: the schedule has none of that number.
    """
    if not 0 <= index < len(steps):
        raise RefusedReplyError(f"there are {len(steps)} steps, and {index} is none of them")
    return steps[index]


def another_plan(asked: str, own: str) -> RefusedReplyError:
    """A request of one plan reached a site whose base model gives another one."""
    return RefusedReplyError(
        f"the server merges by plan {asked[:12]}, this site's base model gives "
        f"{own[:12]}: the models differ"
    )


def merged_prefix(
    context: StepContext, steps: Sequence[Step], plan: str, settings: str, store: SiteStore
) -> MergedPrefix:
    """Check that what a request brought and what is kept end in its chain digest, and keep it too.

    Of the steps that were kept before, only what the last one ends in is read.

    Args:
        context: of the request.
        steps: of its chain.
        plan: digest of the plan that this site's model gives.
        settings: digest of the settings.
        store: of this run, site and method.

    Raises:
        LacksMerged: something is missing, or is not what was merged.
        RefusedReplyError: the plan or the chain digest is not what this site computes from the same
            model and the same merged updates.
    """
    if plan != context.plan:
        raise another_plan(context.plan, plan)
    step = step_of(context.step, steps)
    other_params = _other_params(context, store)
    first = first_digest(plan, settings, other_params)
    merged = MergedSteps(step.needs, first, context.merged, store)
    if merged.digest != context.chain_digest:
        if merged.kept or (context.averaged and not context.other_params):
            raise merged.lacking()  # what is on disk is not what was merged
        raise RefusedReplyError(
            f"step {context.step} is asked for behind {context.chain_digest[:12]}, but the merged "
            f"updates received give {merged.digest[:12]}"
        )
    if context.other_params:
        store.save_other_params(context.other_params)
    merged.save_received()
    return MergedPrefix(other_params, step, steps, merged, store)


def _other_params(context: StepContext, store: SiteStore) -> dict[str, Tensor]:
    if not context.averaged:
        return {}
    other_params = dict(context.other_params) or store.load_other_params()
    if other_params is None:
        raise LacksMerged(-1)
    return other_params
