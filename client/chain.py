"""Answer one question of the chain: catch up, propagate, measure."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from client.state import SiteState
from layerweld.collect import HiddenStates, ReplayableModel, collect, propagate
from layerweld.errors import RefusedReplyError
from layerweld.methods import settings_for
from layerweld.prefix import extend_prefix, first_prefix
from layerweld.replay import RecordedBatch
from layerweld.schedule import Step, schedule
from layerweld.statistics import GroupStatistics
from layerweld.transport.messages import Answer, Question
from layerweld.updates import Update


def answer(state: SiteState, question: Question) -> Answer:
    """The statistics that a question asks for, or what the site lacks to compute them.

    Raises:
        RefusedReplyError: the question's plan or prefix is not what this site computes from the
            same model and the same merged updates.
    """
    return _ChainSite(state, question).answer()


class _ChainSite:
    """One site's view of one question. Nothing survives it but the store's files."""

    def __init__(self, state: SiteState, question: Question) -> None:
        self.state = state
        self.question = question
        self.plan = state.plan.restricted_to(question.layers)
        self.settings = settings_for(question.method, state.settings)
        self.steps = schedule(self.plan, self.settings.merge)
        self.step: Step = self.steps[question.step]
        self.model = ReplayableModel(state.base.backbone, self.plan)
        self.store = state.store(question.method)

    def answer(self) -> Answer:
        self._check_plan()
        self._keep_what_came()
        remainder, merged, missing = self._merged_so_far()
        blank = Answer(
            site=self.state.site.name,
            run=self.question.run,
            step=self.question.step,
            plan=self.question.plan,
            prefix=self.question.prefix,
        )
        if missing is not None:
            return replace(blank, need_from=missing)
        prefixes = self._prefixes(remainder, merged)
        if prefixes[-1] != self.question.prefix:
            if set(self.step.needs) - set(self.question.merged):
                return replace(blank, need_from=-1)  # what is on disk is not what was merged
            raise RefusedReplyError(
                f"step {self.question.step} is asked behind prefix {self.question.prefix[:12]}, "
                f"but the merged updates received give {prefixes[-1][:12]}"
            )
        with self.state.with_remainder(remainder):
            return replace(blank, statistics=self._collect(merged, prefixes, bool(remainder)))

    def _check_plan(self) -> None:
        if self.plan.digest != self.question.plan:
            raise RefusedReplyError(
                f"the server merges by plan {self.question.plan[:12]}, this site's base model "
                f"gives {self.plan.digest[:12]}: the models differ"
            )

    def _keep_what_came(self) -> None:
        store = self.store
        if self.question.remainder:
            store.save_remainder(self.question.remainder)
        for step, updates in self.question.merged.items():
            store.save_step(step, updates)

    def _merged_so_far(
        self,
    ) -> tuple[dict[str, Tensor], dict[int, dict[str, Update]], int | None]:
        """The remainder, the merged updates by step, and the first step that is missing."""
        store = self.store
        remainder = store.load_remainder() if self.question.averaged else {}
        if remainder is None:
            return {}, {}, -1
        merged: dict[int, dict[str, Update]] = {}
        for step in self.step.needs:
            updates = store.load_step(step)
            if updates is None:
                return remainder, merged, step
            merged[step] = updates
        return remainder, merged, None

    def _prefixes(
        self, remainder: dict[str, Tensor], merged: dict[int, dict[str, Update]]
    ) -> list[str]:
        """The prefix hash before the first needed step, and after each one since."""
        digest = self.settings.digest()
        prefixes = [first_prefix(self.plan.digest, digest, remainder)]
        for step in sorted(merged):
            prefixes.append(extend_prefix(prefixes[-1], merged[step]))
        return prefixes

    def _collect(
        self, merged: dict[int, dict[str, Update]], prefixes: list[str], averaged: bool
    ) -> tuple[GroupStatistics, ...]:
        in_place = {layer: u for updates in merged.values() for layer, u in updates.items()}
        recording = self.state.recording(self.model, shifted_embeddings=averaged)
        hidden = self._hidden(recording, in_place, prefixes)
        return collect(
            self.model,
            recording,
            hidden,
            self.step,
            in_place,
            self.state.adapter.task_vector.updates,
            self.settings.merge,
            self.question.form,
        )

    def _hidden(
        self, recording: list[RecordedBatch], merged: dict[str, Update], prefixes: list[str]
    ) -> HiddenStates:
        """Hidden states that enter the step's first block: kept, or rebuilt from what is."""
        entry = [batch.entry for batch in recording]
        if self.step.restarts:
            return entry
        wanted = self.step.groups[0].block
        hidden, block = entry, 0
        for candidate in range(wanted, 0, -1):
            kept = self.store.load_hidden(candidate, self._prefix_of(candidate, prefixes))
            if kept is not None:
                device = entry[0].device
                hidden, block = [states.to(device) for states in kept], candidate
                break
        if block == wanted:
            return hidden
        for index in range(block, wanted):
            hidden = propagate(self.model, recording, hidden, index, merged)
        self.store.save_hidden(wanted, self._prefix_of(wanted, prefixes), hidden)
        return hidden

    def _prefix_of(self, block: int, prefixes: list[str]) -> str:
        """The prefix hash after the last step that merged anything before this block."""
        done = sum(1 for step in self.steps if step.groups[-1].block < block)
        return prefixes[done]
