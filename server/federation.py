"""One run, phase by phase: handshake, fine-tuning, merges, evaluation. What comes out is values."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.serverapp import Grid
from torch import Tensor

from layerweld.base_model import BaseModel, load_base, tokenizer_fingerprint
from layerweld.config import RunSettings
from layerweld.discover import discover_plan
from layerweld.errors import CohortError, RefusedReplyError
from layerweld.exact_sum import ExactSum
from layerweld.methods import Method, methods_of
from layerweld.plan import MergePlan
from layerweld.progress import report_progress
from layerweld.schedule import Step
from layerweld.statistics import ProductForm
from layerweld.transport import (
    Introduction,
    ModelToMeasure,
    decode_introduction,
    encode_model,
    encode_run,
    from_arrays,
    read_list,
)
from layerweld.updates import Update
from server.handshake import check_cohort, merged_layers
from server.journal import RunJournal
from server.results import GroupFigures, Score
from strategies.chain_of_merges import ChainOfMerges, SolvedStep
from strategies.cohort import Cohort, stream_replies
from strategies.update_merging import UpdateMerging


@dataclass
class MergedModel:
    """What one method made, and what it cost.

    Attributes:
        method: which.
        updates: merged updates, by layer.
        remainder: what was added to norms, biases and embeddings; empty for LoRA.
        groups: figures per layer group; empty for methods without statistics.
        prefix: hash over everything merged; empty for methods without a chain.
        figures: what the method says about itself on this input.
    """

    method: Method
    updates: Mapping[str, Update]
    remainder: Mapping[str, Tensor]
    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    groups: tuple[GroupFigures, ...] = ()
    prefix: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)


class Federation:
    """The server's side of one run.

    Args:
        grid: Flower's grid.
        settings: of the run.
        base: folder of the base model at the server.
        journal: where solved steps are kept.
    """

    def __init__(self, grid: Grid, settings: RunSettings, base: str, journal: RunJournal) -> None:
        self.grid = grid
        self.settings = settings
        self.methods = methods_of(settings)
        self.base: BaseModel = load_base(base)
        self.whole_plan = discover_plan(self.base.backbone)
        self.journal = journal
        self.run = journal.run_id()
        self.cohort = Cohort({}, settings.timeout)
        self.introductions: tuple[Introduction, ...] = ()

    @property
    def plan(self) -> MergePlan:
        """The layers that are merged."""
        return merged_layers(self.introductions, self.whole_plan)

    @property
    def sites_can_evaluate(self) -> bool:
        """Whether every site has a head and labelled held-out rows."""
        return all(introduction.evaluates for introduction in self.introductions)

    def introduce(self) -> None:
        """Wait for the sites, ask each who it is, and refuse a cohort that does not fit."""
        nodes = self._wait_for_nodes()
        unnamed = Cohort({node: f"node {node}" for node in nodes}, self.settings.timeout)
        by_node: dict[int, Introduction] = {}
        messages = unnamed.messages(encode_run(self.run), "query.handshake", "handshake")
        replies = stream_replies(self.grid, messages, self.settings.timeout)
        for _, reply in unnamed.checked(replies, "handshake"):
            by_node[reply.metadata.src_node_id] = decode_introduction(reply.content)
            report_progress("handshake", len(by_node), len(nodes))
        self.introductions = tuple(sorted(by_node.values(), key=lambda one: one.site))
        check_cohort(
            self.introductions,
            base=self.base.fingerprint,
            tokenizer=tokenizer_fingerprint(self.base.folder),
            plan=self.whole_plan.digest,
            settings=self.settings.digest(),
        )
        self.cohort = Cohort({n: i.site for n, i in by_node.items()}, self.settings.timeout)

    def fine_tune(self) -> None:
        """Let the sites that have no adapter yet train one."""
        if all(introduction.kind != "none" for introduction in self.introductions):
            return
        answers = self.cohort.ask(self.grid, encode_run(self.run), "train.finetune")
        trained = [decode_introduction(content) for _, content in answers]
        self.introductions = tuple(sorted(trained, key=lambda one: one.site))

    def begin_journal(self) -> None:
        """From here on, what is solved is kept."""
        self.journal.open(
            {
                "run": self.run,
                "base": self.base.fingerprint,
                "plan": self.plan.digest,
                "settings": self.settings.digest(),
                "methods": [method.name for method in self.methods],
                "sites": {one.site: [one.samples, one.tokens] for one in self.introductions},
            }
        )

    def average_remainder(self) -> dict[str, Tensor]:
        """What full fine-tuning changed outside of the linear layers, averaged over the sites.

        It must be known before the chain starts: the chain's inputs depend on it.
        """
        if all(introduction.kind == "lora" for introduction in self.introductions):
            return {}
        sums: dict[str, ExactSum] = {}
        for site, content in self.cohort.ask(self.grid, encode_run(self.run), "train.remainder"):
            for name, values in from_arrays(content.array_records["remainder"]).items():
                total = sums.setdefault(name, ExactSum(tuple(values.shape)))
                try:
                    total.add(values.double())
                except ValueError as error:
                    raise RefusedReplyError(f"{site}: remainder of {name!r}: {error}") from None
        count = len(self.introductions)
        return {name: (total.total() / count).float() for name, total in sorted(sums.items())}

    def merge(self, method: Method, remainder: Mapping[str, Tensor]) -> MergedModel:
        """Play one method."""
        if method.granularity is None:
            return self._merge_updates(method, remainder)
        started = time.perf_counter()
        dense = self.settings.merge.products == "dense" or any(
            introduction.kind == "full" for introduction in self.introductions
        )
        strategy = ChainOfMerges(
            plan=self.plan,
            cohort=self.cohort,
            settings=self.settings,
            method=method.name,
            run=self.run,
            form=ProductForm(dense, with_updates=self.settings.merge.anchor == "mean"),
            remainder=remainder,
            journal=self.journal.of_method(method.name),
            on_step=lambda step, _: report_progress(
                method.label, step.index + 1, len(strategy.steps)
            ),
        )
        report_progress(method.label, 0, len(strategy.steps))
        strategy.play(self.grid)
        return MergedModel(
            method=method,
            updates=strategy.merged,
            remainder=remainder,
            rounds=len(strategy.steps),
            seconds=time.perf_counter() - started,
            bytes_up=sum(_bytes_up(solved) for solved in strategy.solved),
            bytes_down=sum(solved.bytes_down for solved in strategy.solved),
            groups=_figures(strategy.steps, strategy.solved),
            prefix=strategy.final_prefix,
        )

    def evaluate(self, kind: str, merged: MergedModel | None = None) -> dict[str, Score]:
        """Held-out accuracy at every site: of the base model, the sites' own, or a merged one."""
        model = self._model(kind, merged)
        scores: dict[str, Score] = {}
        for site, content in self.cohort.ask(self.grid, encode_model(model), "evaluate.model"):
            metrics = content.metric_records["metrics"]
            accuracy, samples = metrics["accuracy"], metrics["num-examples"]
            if not isinstance(accuracy, float) or not isinstance(samples, int):
                raise RefusedReplyError(f"{site} sent {accuracy!r} as its accuracy")
            scores[site] = Score(accuracy, samples)
            label = merged.method.label if merged else kind
            report_progress(f"evaluating {label}", len(scores), len(self.cohort.sites))
        return dict(sorted(scores.items()))

    def measure_shift(self, merged: MergedModel) -> dict[str, dict[str, float]]:
        """Eq. 8 of a merged model: by group, then by site."""
        by_group: dict[str, dict[str, float]] = {g.name: {} for g in self.plan.groups}
        model = self._model("merged", merged)
        for done, (site, content) in enumerate(
            self.cohort.ask(self.grid, encode_model(model), "query.shift")
        ):
            record = content.config_records["shift"]
            values = read_list(record, "shifts", float)
            for group, value in zip(read_list(record, "groups", str), values, strict=True):
                by_group[group][site] = value
            what = f"covariate shift, {merged.method.label}"
            report_progress(what, done + 1, len(self.cohort.sites))
        return {group: dict(sorted(sites.items())) for group, sites in by_group.items()}

    def _merge_updates(self, method: Method, remainder: Mapping[str, Tensor]) -> MergedModel:
        started = time.perf_counter()
        strategy = UpdateMerging(
            plan=self.plan,
            cohort=self.cohort,
            run=self.run,
            method=self.settings.of_method(method.table),
            samples={one.site: one.samples for one in self.introductions},
            remainder=remainder,
            lines=self.settings.lines if method.lines else None,
            rank=self.settings.merge.rank,
        )
        report_progress(method.label, 0, 1)
        strategy.play(self.grid)
        report_progress(method.label, 1, 1)
        return MergedModel(
            method=method,
            updates=strategy.merged.updates,
            remainder=strategy.remainder,
            rounds=1,
            seconds=time.perf_counter() - started,
            bytes_up=sum(strategy.bytes_up.values()),
            bytes_down=0,
            figures=strategy.merged.figures,
        )

    def _model(self, kind: str, merged: MergedModel | None) -> ModelToMeasure:
        updates = merged.updates if merged else {}
        remainder = merged.remainder if merged else {}
        return ModelToMeasure(self.run, kind, self.plan.layer_names, updates, remainder)

    def _wait_for_nodes(self) -> list[int]:
        deadline = time.monotonic() + self.settings.timeout
        while len(nodes := sorted(self.grid.get_node_ids())) < self.settings.min_sites:
            if time.monotonic() > deadline:
                raise CohortError(
                    f"{len(nodes)} of min-sites = {self.settings.min_sites} sites connected "
                    f"within {self.settings.timeout:.0f} s"
                )
            time.sleep(0.2)
        return nodes


def _bytes_up(solved: SolvedStep) -> int:
    return sum(count for sites in solved.bytes_up.values() for count in sites.values())


def _figures(steps: Sequence[Step], solved: Sequence[SolvedStep]) -> tuple[GroupFigures, ...]:
    """One entry per group; of Jacobi rounds the last one's."""
    by_group: dict[str, GroupFigures] = {}
    for step, done in zip(steps, solved, strict=True):
        for group, solution in zip(step.groups, done.solutions, strict=True):
            by_group[group.name] = GroupFigures(
                name=group.name,
                step=step.index,
                layers=tuple(shape.name for shape in group.layers),
                d_in=group.d_in,
                tokens=solution.tokens,
                importance=solution.importance,
                condition=solution.condition,
                ridge=solution.ridge,
                residual=solution.residual,
                compression_error=solution.compression_error,
                bytes_up=dict(sorted(done.bytes_up[group.name].items())),
            )
    return tuple(by_group.values())
