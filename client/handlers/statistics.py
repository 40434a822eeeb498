"""Reply to one request for statistics: catch up, propagate, measure."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from client.handlers.merged_prefix import merged_prefix, step_of
from client.handlers.merged_steps import LacksMerged
from client.state import SiteState
from layerweld.model.collect import HiddenStates, ReplayableModel, collect, entering_first
from layerweld.model.replay import RecordedBatch
from layerweld.model.schedule import schedule
from layerweld.settings.methods import method_named, settings_for
from layerweld.statistics.group import GroupStatistics
from layerweld.transport.statistics import StatisticsReply, StatisticsRequest
from layerweld.updates.update import Update


def reply_to(state: SiteState, request: StatisticsRequest) -> StatisticsReply:
    """The statistics that a request asks for, or what the site lacks to compute them.

    Raises:
        RefusedReplyError: the request's plan or chain digest is not what this site computes from
            the same model and the same merged updates.
    """
    try:
        return StatisticsReply(_ChainSite(state, request).statistics())
    except LacksMerged as lack:
        return StatisticsReply(need_from=lack.first)


class _ChainSite:
    """One site's view of one request. Nothing survives it but the store's files."""

    def __init__(self, state: SiteState, request: StatisticsRequest) -> None:
        self.state = state
        self.context = request.context
        self.form = request.form
        self.plan = state.plan.restricted_to(self.context.layers)
        method = method_named(self.context.method, state.settings)
        self.settings = settings_for(method, state.settings)
        self.steps = schedule(self.plan, self.settings.merge)
        self.step = step_of(self.context.step, self.steps)
        self.model = ReplayableModel(state.base.backbone, self.plan)
        self.store = state.store(self.context.method)

    def statistics(self) -> tuple[GroupStatistics, ...]:
        digest = self.settings.digest()
        prefix = merged_prefix(self.context, self.steps, self.plan.digest, digest, self.store)
        own = self.state.adapter.task_vector.other_params
        if self.step.inside == "own" and self.step.restarts:
            with self.state.with_other_params(own):
                recording = self.model.record(self.state.batches) if own else self._recording(own)
                hidden = entering_first(self.model, recording, self.step)
                return self._collect(recording, hidden, {})
        with self.state.with_other_params(prefix.other_params):
            recording = self._recording(prefix.other_params)
            hidden = prefix.hidden_before(self.model, recording)
            if self.step.inside == "merged":
                return self._collect(recording, hidden, prefix.updates)
        with self.state.with_other_params(own):
            return self._collect(recording, hidden, prefix.updates)

    def _recording(self, other_params: Mapping[str, Tensor]) -> list[RecordedBatch]:
        return self.state.recording(self.model, shifted_embeddings=bool(other_params))

    def _collect(
        self, recording: list[RecordedBatch], hidden: HiddenStates, merged: Mapping[str, Update]
    ) -> tuple[GroupStatistics, ...]:
        return collect(
            self.model,
            recording,
            hidden,
            self.step,
            merged,
            self.state.adapter.task_vector.updates,
            self.settings.merge,
            self.form,
        )
