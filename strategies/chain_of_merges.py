"""The Chain of Merges, one step of its schedule a round; its ablations are its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from flwr.app import RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.model.schedule import Step, schedule
from layerweld.plan import LayerGroup, MergePlan
from layerweld.settings.merge import MergeSettings
from layerweld.settings.methods import iterations_of, method_named, settings_for
from layerweld.settings.run import RunSettings
from layerweld.statistics.admission import Admitted
from layerweld.statistics.group import ProductForm
from layerweld.statistics.pool import GroupPool, GroupSolution
from layerweld.transport.layout import Budget, Layout
from layerweld.transport.statistics import (
    STATISTICS,
    StatisticsRequest,
    decode_statistics,
    encode_statistics_request,
    statistics_layout,
)
from layerweld.updates.bounds import all_within_ranks
from layerweld.updates.named_tensors import (
    extend_digest,
    first_digest,
    update_tensors,
    updates_from,
)
from layerweld.updates.update import Update
from strategies.catching_up import CatchUp
from strategies.cohort import Cohort
from strategies.merge_strategy import MergeStrategy
from strategies.poll import Request
from strategies.rounds import NO_JOURNAL, Kept, MethodRounds, Outcome, Round, RoundJournal


class ChainOfMerges(MergeStrategy):
    """The Chain of Merges for who uses Flower's own ``start``: see ``docs/flower.md``.

    Args:
        plan: the layer groups that are merged, in forward order.
        cohort: the sites.
        settings: of the run.
        method: ``com`` or one of its ablations.
        other_params: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
        journal: where solved steps are kept; nowhere unless given.
    """

    def __init__(
        self,
        plan: MergePlan,
        cohort: Cohort,
        settings: RunSettings,
        *,
        method: str = "com",
        other_params: Mapping[str, Tensor] = MappingProxyType({}),
        journal: RoundJournal = NO_JOURNAL,
    ) -> None:
        chosen = method_named(method, settings)
        super().__init__(cohort, ChainRounds(chosen, plan, cohort, settings, other_params), journal)


class ChainRounds(MethodRounds):
    """Merge the sites' models one step a round, in forward order.

    A round asks every site for the statistics of one step and sends along the updates that the
    round before solved, so that each site measures what the *merged* prefix of the network really
    feeds to the group. Replies are added up as they arrive and forgotten; a site that lacks merged
    updates says from which step on, and gets them.

    Attributes:
        merged: updates of each finished step, by layer.
        groups: metrics of each layer group, by finished step.
        digests: hash over all that is merged before each step.
    """

    def __post_init__(self) -> None:
        self.settings = settings_for(self.method, self.settings)
        self.steps = schedule(self.plan, self.settings.merge)
        self.count = len(self.steps)
        self.merged: list[dict[str, Update]] = []
        self.groups: list[list[dict[str, Any]]] = []
        self.digests = [first_digest(self.plan.digest, self.settings.digest(), self.other_params)]
        self._form = _form(self.settings.merge, self.cohort)

    def round_at(self, index: int) -> Round[tuple[Admitted, ...]]:
        """Ask for the statistics of one step."""
        step = self.steps[index]
        asked = StatisticsRequest(self.context(index, self.digests[index]), self._form)
        # What the step before solved; before the first one, the other parameters.
        catch_up = CatchUp(step, partial(self._encoded, asked), index - 1)
        merge, iterations = self.settings.merge, iterations_of(self.method, self.settings)
        pools = {group.name: GroupPool(group, merge, iterations) for group in step.groups}
        measured = _Step(step, asked, pools, self.cohort, catch_up)
        request = Request(
            STATISTICS,
            f"statistics of step {index + 1}",
            catch_up.content,
            measured.read,
            measured.budget,
        )
        return Round(request, measured.fold)

    def advance(self, kept: Kept) -> None:
        """One more step is solved."""
        step, updates = self.steps[len(self.merged)], updates_from(kept.tensors)
        names = [layer.name for group in step.groups for layer in group.layers]
        solved = {name: updates[name] for name in names if name in updates}
        self.digests.append(extend_digest(self.digests[0 if step.restarts else -1], solved))
        self.merged.append(solved)
        self.groups.append(kept.metrics["groups"])

    def outcome(self) -> Outcome:
        """All updates, by layer; of Jacobi rounds the last one's."""
        groups = {group["name"]: group for step in self.groups for group in step}
        errors = [group["compression_error"] for group in groups.values()]
        is_cut = self.settings.merge.rank > 0
        return Outcome(
            updates={layer: update for step in self.merged for layer, update in step.items()},
            other_params=self.other_params,
            metrics={"largest compression error of a group": max(errors, default=0.0)}
            if is_cut
            else {},
            groups=tuple(groups.values()),
            chain_digest=self.digests[-1],
        )

    def _encoded(
        self, asked: StatisticsRequest, steps: range, with_other_params: bool
    ) -> RecordDict:
        other_params = self.other_params if with_other_params else {}
        merged = {index: self.merged[index] for index in steps}
        context = asked.context.with_merged(other_params, merged)
        return encode_statistics_request(replace(asked, context=context))


@dataclass(frozen=True)
class _Step:
    """The replies to one step: which may be added, and what they come to.

    Nothing of a reply is added before all of it has been checked.
    """

    step: Step
    asked: StatisticsRequest
    pools: Mapping[str, GroupPool]
    cohort: Cohort
    catch_up: CatchUp

    def read(self, site: str, content: RecordDict) -> tuple[Admitted, ...] | None:
        """Statistics of every group that may be added; None where the site must catch up first."""
        form, ranks = self.asked.form, self.cohort.site_infos[site].rank_of
        if not form.dense and 0 in ranks.values():
            raise RefusedReplyError("it said that it brings whole layers, in a run of LoRA factors")
        reply = decode_statistics(content, self.step.groups, ranks, form)
        if reply.need_from is not None:
            self.catch_up.note(site, reply.need_from)
            return None
        return tuple(self.pools[one.group].check(site, one) for one in reply.statistics)

    def budget(self, site: str) -> Budget:
        """What a reply may take."""
        return self._layout(site, self.step.groups).budget

    def fold(self, replies: Iterator[tuple[str, tuple[Admitted, ...]]]) -> Kept:
        """Add the statistics up as they come, and solve every group."""
        for _site, groups in replies:
            for admitted in groups:
                self.pools[admitted.statistics.group].fold(admitted)
        solved = [pool.solve() for pool in self.pools.values()]
        updates = {layer: u for one in solved for layer, u in one.updates.items()}
        metrics = {
            "groups": [self._metrics(one) for one in solved],
            "condition": max(one.condition for one in solved),
            "residual": max(one.residual for one in solved),
        }
        return Kept(update_tensors(all_within_ranks(updates)), metrics)

    def _metrics(self, solution: GroupSolution) -> dict[str, Any]:
        """JSON values, by the fields of :class:`layerweld.report.results.GroupMetrics`."""
        group = self.pools[solution.group].group
        solved = {k: v for k, v in vars(solution).items() if k not in ("group", "updates")}
        return solved | {
            "name": group.name,
            "step": self.step.index,
            "layers": tuple(layer.name for layer in group.layers),
            "d_in": group.d_in,
            "bytes_up": {site: self._layout(site, [group]).num_bytes for site in solution.tokens},
            "lost": tuple(sorted(self.cohort.lost)),
        }

    def _layout(self, site: str, groups: Sequence[LayerGroup]) -> Layout:
        ranks = self.cohort.site_infos[site].rank_of
        return statistics_layout(groups, ranks, self.asked.form)


def _form(settings: MergeSettings, cohort: Cohort) -> ProductForm:
    """How products travel: factored only where every site brings a LoRA."""
    whole = any(one.kind == "full" for one in cohort.site_infos.values())
    return ProductForm(settings.products == "dense" or whole, settings.anchor == "mean")
