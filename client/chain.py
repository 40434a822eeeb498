"""Answer one question of the chain: catch up, propagate, measure."""

from __future__ import annotations

from dataclasses import replace

from client.merged_prefix import LacksMerged, MergedPrefix, merged_prefix
from client.state import SiteState
from layerweld.collect import ReplayableModel, collect
from layerweld.methods import settings_for
from layerweld.schedule import schedule
from layerweld.statistics import GroupStatistics
from layerweld.transport.messages import Answer, Question


def answer(state: SiteState, question: Question) -> Answer:
    """The statistics that a question asks for, or what the site lacks to compute them.

    Raises:
        RefusedReplyError: the question's plan or prefix is not what this site computes from the
            same model and the same merged updates.
    """
    blank = Answer(
        site=state.site.name,
        run=question.run,
        step=question.step,
        plan=question.plan,
        prefix=question.prefix,
    )
    try:
        return replace(blank, statistics=_ChainSite(state, question).statistics())
    except LacksMerged as lack:
        return replace(blank, need_from=lack.first)


class _ChainSite:
    """One site's view of one question. Nothing survives it but the store's files."""

    def __init__(self, state: SiteState, question: Question) -> None:
        self.state = state
        self.question = question
        self.plan = state.plan.restricted_to(question.layers)
        self.settings = settings_for(question.method, state.settings)
        self.steps = schedule(self.plan, self.settings.merge)
        self.step = self.steps[question.step]
        self.model = ReplayableModel(state.base.backbone, self.plan)
        self.store = state.store(question.method)

    def statistics(self) -> tuple[GroupStatistics, ...]:
        digest = self.settings.digest()
        prefix = merged_prefix(self.question, self.step, self.plan.digest, digest, self.store)
        with self.state.with_remainder(prefix.remainder):
            return self._collect(prefix)

    def _collect(self, prefix: MergedPrefix) -> tuple[GroupStatistics, ...]:
        shifted = bool(prefix.remainder)
        recording = self.state.recording(self.model, shifted_embeddings=shifted)
        return collect(
            self.model,
            recording,
            prefix.hidden_before(self.model, recording, self.steps, self.step, self.store),
            self.step,
            prefix.updates,
            self.state.adapter.task_vector.updates,
            self.settings.merge,
            self.question.form,
        )
