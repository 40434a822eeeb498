"""The Chain of Merges as a Flower strategy; its ablations are its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from layerweld.config import RunSettings
from layerweld.errors import CohortError, RefusedReplyError
from layerweld.methods import settings_for
from layerweld.plan import MergePlan
from layerweld.pool import GroupPool, GroupSolution
from layerweld.prefix import first_prefix, prefix_of_step
from layerweld.schedule import Step, schedule
from layerweld.statistics import ProductForm
from layerweld.transport import (
    Answer,
    Question,
    decode_answer,
    encode_question,
    num_bytes,
    to_arrays,
    update_tensors,
)
from layerweld.updates import Update
from strategies.cohort import Cohort, stream_replies


@dataclass(frozen=True)
class SolvedStep:
    """One finished round.

    Attributes:
        index: of the step.
        solutions: one for each group of the step.
        bytes_up: bytes of statistics by group and site.
        bytes_down: bytes of merged updates sent to all sites together.
    """

    index: int
    solutions: tuple[GroupSolution, ...]
    bytes_up: Mapping[str, Mapping[str, int]]
    bytes_down: int

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
        method: name of the chain variant, see :mod:`layerweld.methods`.
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
        self.first_prefix = first_prefix(plan.digest, self.settings.digest(), remainder)
        self.solved: list[SolvedStep] = []
        self._grid: Grid | None = None
        self._bytes_down = 0

    @property
    def merged(self) -> dict[str, Update]:
        """All updates merged so far, by layer; of Jacobi rounds the last one's."""
        return {layer: u for solved in self.solved for layer, u in solved.updates.items()}

    @property
    def final_prefix(self) -> str:
        """Hash over everything merged, once the last step is solved."""
        by_step = {solved.index: solved.updates for solved in self.solved}
        after = replace(self.steps[-1], index=len(self.steps))
        return prefix_of_step(after, self.first_prefix, by_step)

    def play(self, grid: Grid) -> None:
        """Resume from the journal and play the rounds that are left, replies streaming in."""
        for step, solved in zip(self.steps, self.journal.load(), strict=False):
            self.solved.append(solved)
            self.on_step(step, solved)
        nothing = ConfigRecord()
        for round_ in range(len(self.solved) + 1, len(self.steps) + 1):
            messages = self.configure_train(round_, ArrayRecord(), nothing, grid)
            self.aggregate_train(round_, stream_replies(grid, messages, self.cohort.timeout))

    def start(self, grid: Grid, *args: object, **kwargs: object) -> Result:
        """Flower's own loop, over as many rounds as the schedule has steps."""
        kwargs["num_rounds"] = len(self.steps)
        return super().start(grid, *args, **kwargs)  # type: ignore[arg-type]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for the next step's statistics and send what the last step solved."""
        self._grid = grid
        self._bytes_down = 0
        question = self._question(self.steps[server_round - 1])
        return self._messages(question, range(max(0, question.step - 1), question.step))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Add the replies up as they come, solve, and make the solution durable."""
        step = self.steps[server_round - 1]
        pools = {group.name: GroupPool(group, self.settings.merge) for group in step.groups}
        bytes_up: dict[str, dict[str, int]] = {group.name: {} for group in step.groups}
        for site, answer in self._settled(self._question(step), replies):
            for statistics in answer.statistics:
                pools[statistics.group].add(site, statistics)
                bytes_up[statistics.group][site] = statistics.num_bytes
        solutions = tuple(pool.solve() for pool in pools.values())
        solved = SolvedStep(step.index, solutions, bytes_up, self._bytes_down)
        self.journal.keep(solved)
        self.solved.append(solved)
        self.on_step(step, solved)
        metrics: dict[str, int | float | list[int] | list[float]] = {
            "groups": len(solutions),
            "condition": max(solution.condition for solution in solutions),
            "residual": max(solution.residual for solution in solutions),
        }
        return to_arrays(update_tensors(solved.updates)), MetricRecord(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: half a merged model says little. The finished one is evaluated by the server."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing was asked."""

    def summary(self) -> None:
        """Flower prints this before the first round; the run's own progress says it better."""

    def _question(self, step: Step) -> Question:
        merged = {solved.index: solved.updates for solved in self.solved}
        return Question(
            run=self.run,
            method=self.method,
            step=step.index,
            layers=self.plan.layer_names,
            plan=self.plan.digest,
            prefix=prefix_of_step(step, self.first_prefix, merged),
            form=self.form,
            averaged=bool(self.remainder),
        )

    def _messages(self, question: Question, steps: Iterable[int]) -> list[Message]:
        asked = self._with_merged(question, steps, with_remainder=question.step == 0)
        messages = self.cohort.messages(
            encode_question(asked), "train.statistics", str(question.step)
        )
        self._bytes_down += sum(num_bytes(message.content) for message in messages)
        return messages

    def _with_merged(
        self, question: Question, steps: Iterable[int], *, with_remainder: bool
    ) -> Question:
        remainder = self.remainder if with_remainder else {}
        return question.catching_up(remainder, {k: self.solved[k].updates for k in steps})

    def _settled(
        self, question: Question, replies: Iterable[Message]
    ) -> Iterator[tuple[str, Answer]]:
        """Each site's answer with statistics; a site that lags behind is sent what it lacks."""
        behind: dict[int, int] = {}
        for site, reply in self.cohort.checked(replies, f"statistics of step {question.step}"):
            answer = self._read(site, question, reply)
            if answer.need_from is None:
                yield site, answer
            else:
                behind[reply.metadata.src_node_id] = answer.need_from
        for node, first in sorted(behind.items()):
            yield self._catch_up(question, node, first)

    def _catch_up(self, question: Question, node: int, first: int) -> tuple[str, Answer]:
        assert self._grid is not None
        site = self.cohort.sites[node]
        needed = range(max(first, self.steps[question.step].needs.start), question.step)
        asked = self._with_merged(question, needed, with_remainder=first < 0)
        one = Cohort({node: site}, self.cohort.timeout)
        messages = one.messages(encode_question(asked), "train.statistics", str(question.step))
        self._bytes_down += num_bytes(messages[0].content)
        replies = stream_replies(self._grid, messages, one.timeout)
        for _, reply in one.checked(replies, f"statistics of step {question.step}"):
            answer = self._read(site, question, reply)
            if answer.need_from is None:
                return site, answer
        raise CohortError(
            f"{site} still lacks merged updates after it was sent all from step {first}; is its "
            f"cache folder writable, and its disk not full?"
        )

    def _read(self, site: str, question: Question, reply: Message) -> Answer:
        answer = decode_answer(reply.content)
        about = (answer.site, answer.run, answer.step, answer.plan, answer.prefix)
        asked = (site, question.run, question.step, question.plan, question.prefix)
        if about != asked:
            raise RefusedReplyError(
                f"{site} answered for (site, run, step, plan, prefix) = {about}, asked was {asked}"
            )
        expected = {group.name for group in self.steps[question.step].groups}
        sent = [statistics.group for statistics in answer.statistics]
        if answer.need_from is None and (set(sent) != expected or len(sent) != len(expected)):
            raise RefusedReplyError(
                f"{site} sent statistics of {len(sent)} groups where step {question.step} has "
                f"{len(expected)}, or of other ones"
            )
        return answer
