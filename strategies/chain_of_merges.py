"""The Chain of Merges as a Flower strategy; its ablations are its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.model.schedule import Step, schedule
from layerweld.plan import LayerGroup, MergePlan
from layerweld.settings.methods import settings_for
from layerweld.settings.run import RunSettings
from layerweld.statistics.admission import Admitted
from layerweld.statistics.group import ProductForm
from layerweld.statistics.pool import GroupPool, GroupSolution
from layerweld.transport.arrays import num_bytes, numpy_arrays
from layerweld.transport.layout import Budget, Layout
from layerweld.transport.statistics import (
    STATISTICS,
    StatisticsRequest,
    decode_statistics,
    encode_statistics_request,
    statistics_layout,
)
from layerweld.transport.step_context import StepContext
from layerweld.updates.digest import extend_prefix, first_prefix
from layerweld.updates.named_tensors import update_tensors
from layerweld.updates.proportion import OutOfProportionError
from layerweld.updates.ranks import all_within_ranks
from layerweld.updates.update import Update
from strategies.catching_up import CatchUp
from strategies.cohort import Cohort
from strategies.inquiry import Inquiry


@dataclass(frozen=True)
class SolvedStep:
    """One finished round.

    Attributes:
        index: of the step.
        solutions: one for each group of the step.
        bytes_up: bytes of statistics by group and site.
        bytes_down: bytes of merged updates sent to all sites together.
        lost: sites that were in the run and are in no sum of this step.
    """

    index: int
    solutions: tuple[GroupSolution, ...]
    bytes_up: Mapping[str, Mapping[str, int]]
    bytes_down: int
    lost: tuple[str, ...] = ()

    @property
    def updates(self) -> dict[str, Update]:
        """The merged updates of all groups of the step, by layer."""
        return {layer: u for solution in self.solutions for layer, u in solution.updates.items()}


class Journal(Protocol):
    """Where solved steps are kept, so that a killed server can go on."""

    def load(self) -> Sequence[SolvedStep]:
        """Every step that was kept, in order."""

    def keep(self, step: SolvedStep) -> None:
        """Make one step durable before the next one is asked for."""


class ChainOfMerges(Strategy):
    """Merge the sites' models one step a round, in forward order.

    Round ``r`` asks every site for the statistics of step ``r - 1`` of the schedule and sends
    along the updates that round ``r - 1`` solved, so that each site measures what the *merged*
    prefix of the network really feeds to the group. Replies are added up as they arrive and
    forgotten; a site that lacks merged updates says from which step on, and gets them.

    Args:
        plan: the layer groups that are merged, in forward order.
        cohort: the sites.
        settings: of the run.
        method: name of the chain variant, see :mod:`layerweld.settings.methods`.
        run: identifies the run; sites keep their state under it.
        form: how products travel.
        remainder: the averaged remainder of full fine-tuning; empty for LoRA.
        journal: keeps solved steps.
        on_step: called with every step that is finished, those of the journal included.
    """

    def __init__(
        self,
        plan: MergePlan,
        cohort: Cohort,
        settings: RunSettings,
        method: str,
        run: str,
        form: ProductForm,
        remainder: Mapping[str, Tensor],
        journal: Journal,
        on_step: Callable[[Step, SolvedStep], None] = lambda _step, _solved: None,
    ) -> None:
        self.plan = plan
        self.cohort = cohort
        self.settings = settings_for(method, settings)
        self.method = method
        self.run = run
        self.form = form
        self.remainder = remainder
        self.journal = journal
        self.on_step = on_step
        self.steps = schedule(plan, self.settings.merge)
        self.prefixes = [first_prefix(plan.digest, self.settings.digest(), remainder)]
        self.solved: list[SolvedStep] = []
        self._round: _Round | None = None

    @property
    def merged(self) -> dict[str, Update]:
        """All updates merged so far, by layer; of Jacobi rounds the last one's."""
        return {layer: u for solved in self.solved for layer, u in solved.updates.items()}

    @property
    def final_prefix(self) -> str:
        """Hash over everything merged, once the last step is solved."""
        return self.prefixes[len(self.steps)]

    def play(self, grid: Grid) -> None:
        """Resume from the journal and play the rounds that are left, replies streaming in."""
        for step, solved in zip(self.steps, self.journal.load(), strict=False):
            self._append(step, solved)
            for site in sorted(set(solved.lost) - self.cohort.lost.keys()):
                self.cohort.lose(site, "lost before the run was interrupted")
        for step in self.steps[len(self.solved) :]:
            self._finish(self._new_round(step, grid))

    def start(self, grid: Grid, *args: object, **kwargs: object) -> Result:
        """Flower's own loop, over as many rounds as the schedule has steps."""
        kwargs["num_rounds"] = len(self.steps)
        return super().start(grid, *args, **kwargs)  # type: ignore[arg-type]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for the next step's statistics and send what the last step solved."""
        self._round = self._new_round(self.steps[server_round - 1], grid)
        return self._round.inquiry.messages()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Add the replies up, ask again where one is bad or missing, solve, make it durable."""
        assert self._round is not None
        solved = self._finish(self._round, replies)
        metrics: dict[str, int | float | list[int] | list[float]] = {
            "groups": len(solved.solutions),
            "condition": max(solution.condition for solution in solved.solutions),
            "residual": max(solution.residual for solution in solved.solutions),
        }
        return numpy_arrays(update_tensors(solved.updates)), MetricRecord(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: half a merged model says little. The finished one is evaluated by the server."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing was asked."""

    def summary(self) -> None:
        """Flower prints this before the first round; the run's own progress says it better."""

    def _finish(self, round_: _Round, early: Iterable[Message] = ()) -> SolvedStep:
        try:
            solved = round_.play(early)
        except OutOfProportionError as error:
            self.cohort.part_with(error)
            return self._finish(self._new_round(round_.step, round_.grid))
        self.journal.keep(solved)
        self._append(round_.step, solved)
        return solved

    def _append(self, step: Step, solved: SolvedStep) -> None:
        before = self.prefixes[0 if step.restarts else -1]
        self.prefixes.append(extend_prefix(before, solved.updates))
        self.solved.append(solved)
        self.on_step(step, solved)

    def _new_round(self, step: Step, grid: Grid) -> _Round:
        merged = {solved.index: solved.updates for solved in self.solved}
        context = StepContext(
            run=self.run,
            method=self.method,
            step=step.index,
            layers=self.plan.layer_names,
            plan=self.plan.digest,
            chain_digest=self.prefixes[step.index],
            averaged=bool(self.remainder),
        )
        request = StatisticsRequest(context, self.form)
        return _Round(grid, self.cohort, step, request, self.settings, self.remainder, merged)


class _Round:
    """One step: what every site is asked, what may be added, and the sums.

    Nothing of an answer is added before all of it has been checked.
    """

    def __init__(
        self,
        grid: Grid,
        cohort: Cohort,
        step: Step,
        request: StatisticsRequest,
        settings: RunSettings,
        remainder: Mapping[str, Tensor],
        merged: Mapping[int, Mapping[str, Update]],
    ) -> None:
        what = f"statistics of step {step.index + 1}"
        self.step = step
        self.grid = grid
        self.inquiry = Inquiry(
            grid, cohort, STATISTICS, what, self._content, self._read, self._budget
        )
        self._cohort = cohort
        self._request = request
        self._remainder = remainder
        self._merged = merged
        self._pools = {group.name: GroupPool(group, settings.merge) for group in step.groups}
        # What the last step solved; before the first one, the remainder.
        self._catch_up = CatchUp(step, self._encoded, step.index - 1)
        self._bytes_down = 0

    def play(self, early: Iterable[Message]) -> SolvedStep:
        """Ask, add up as the answers come, and solve."""
        bytes_up: dict[str, dict[str, int]] = {name: {} for name in self._pools}
        for site, answer in self.inquiry.answers(early):
            for admitted in answer:
                group = admitted.statistics.group
                self._pools[group].fold(admitted)
                bytes_up[group][site] = self._bytes_of(group, site)
        solved = [pool.solve() for pool in self._pools.values()]
        solutions = tuple(replace(one, updates=all_within_ranks(one.updates)) for one in solved)
        lost = tuple(sorted(self._cohort.lost))
        return SolvedStep(self.step.index, solutions, bytes_up, self._bytes_down, lost)

    def _content(self, site: str) -> RecordDict:
        content = self._catch_up.content(site)
        self._bytes_down += num_bytes(content)
        return content

    def _encoded(self, steps: range, with_remainder: bool) -> RecordDict:
        remainder = self._remainder if with_remainder else {}
        merged = {index: self._merged[index] for index in steps}
        context = self._request.context.with_merged(remainder, merged)
        return encode_statistics_request(replace(self._request, context=context))

    def _read(self, site: str, content: RecordDict) -> Sequence[Admitted] | None:
        form, ranks = self._request.form, self._cohort.introductions[site].rank_of
        if not form.dense and 0 in ranks.values():
            raise RefusedReplyError("it said that it brings whole layers, in a run of LoRA factors")
        reply = decode_statistics(content, self.step.groups, ranks, form)
        if reply.need_from is not None:
            self._catch_up.note(site, reply.need_from)
            return None
        return [self._pools[one.group].check(site, one) for one in reply.statistics]

    def _budget(self, site: str) -> Budget:
        return self._layout(site, self.step.groups).budget

    def _bytes_of(self, name: str, site: str) -> int:
        return self._layout(site, [g for g in self.step.groups if g.name == name]).num_bytes

    def _layout(self, site: str, groups: Sequence[LayerGroup]) -> Layout:
        ranks = self._cohort.introductions[site].rank_of
        return statistics_layout(groups, ranks, self._request.form)
