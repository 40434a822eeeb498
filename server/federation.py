"""One run, phase by phase: handshake, fine-tuning, merges, evaluation. What comes out is values."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from layerweld.base_model import BaseModel, load_base, tokenizer_fingerprint
from layerweld.config import RunSettings
from layerweld.demo import demo_name
from layerweld.discover import discover_plan
from layerweld.errors import CohortError, RefusedReplyError
from layerweld.exact_sum import LIMIT, ExactSum
from layerweld.merging.compression import compressed
from layerweld.methods import Method, methods_of, settings_for
from layerweld.plan import MergePlan
from layerweld.progress import report_progress
from layerweld.schedule import Step
from layerweld.statistics import ProductForm
from layerweld.transport.arrays import read_arrays
from layerweld.transport.introduction import decode_introduction
from layerweld.transport.messages import FOUND_OUT_BY_TRAINING, Introduction, ModelToMeasure
from layerweld.transport.model import encode_model
from layerweld.transport.run import encode_run
from layerweld.transport.untrusted import read, read_list, refusing_malformed
from layerweld.updates import Update
from server.handshake import check_cohort, check_layers, merged_layers
from server.journal import RunJournal
from server.results import GroupFigures, Score
from strategies.by_method import Play, rounds_of
from strategies.chain_of_merges import ChainOfMerges, SolvedStep
from strategies.cohort import Cohort, Patience
from strategies.inquiry import ask
from strategies.round_by_round import RoundByRound

_POLL_SECONDS = 0.2
_GOODBYE_SECONDS = 30.0


@dataclass
class MergedModel:
    """What one method made, and what it cost.

    Attributes:
        method: which.
        updates: merged updates, by layer.
        remainder: what was added to norms, biases and embeddings; empty for LoRA.
        lost: sites that took part in the run and are not in all of this merge, each with the first
            round without it, counted from 1.
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
    lost: Mapping[str, int] = field(default_factory=dict)
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
        self.base: BaseModel = load_base(base, settings.base_name or demo_name(settings))
        self.whole_plan = discover_plan(self.base.backbone)
        self.journal = journal
        self.run = journal.run_id()
        self.patience = Patience.of(settings)
        self.cohort = Cohort({}, {}, self.run, self.patience)
        self.introductions: tuple[Introduction, ...] = ()

    @property
    def plan(self) -> MergePlan:
        """The layers that are merged."""
        return merged_layers(self.introductions, self.whole_plan)

    @property
    def lost(self) -> Mapping[str, str]:
        """Why each site that the run goes on without was given up."""
        return dict(sorted(self.cohort.lost.items()))

    def waiting_for(self) -> Mapping[str, str]:
        """Who has not answered the question that is out, each with its last failure."""
        return dict(sorted(self.cohort.waiting.items()))

    @property
    def ignored(self) -> Mapping[str, int]:
        """Replies that were dropped so far, by kind."""
        return self.cohort.ignored

    @property
    def sites_can_evaluate(self) -> bool:
        """Whether every site has a head and labelled held-out rows."""
        return all(introduction.evaluates for introduction in self.introductions)

    def introduce(self) -> None:
        """Wait for the sites, ask each who it is, and refuse a cohort that does not fit."""
        nodes = {f"node {node}": node for node in self._wait_for_nodes()}
        unnamed = Cohort(nodes, {}, self.run, Patience.of_handshake(self.settings))
        self.cohort = unnamed
        came: dict[str, Introduction] = {}
        about = encode_run(self.run)
        answers = ask(self.grid, unnamed, "query.handshake", "handshake", about, _introduction)
        for node, introduction in answers:
            came[node] = introduction
            report_progress("handshake", len(came), len(nodes))
        check_cohort(
            tuple(came.values()),
            base=self.base.fingerprint,
            tokenizer=tokenizer_fingerprint(self.base.folder),
            plan=self.whole_plan,
            settings=self.settings.digest(),
        )
        at = {introduction.site: nodes[node] for node, introduction in came.items()}
        known = {introduction.site: introduction for introduction in came.values()}
        gone = self.journal.lost_introductions(known)
        self.introductions = _sorted((*came.values(), *gone))
        everybody = {introduction.site: introduction for introduction in self.introductions}
        self.cohort = Cohort(at, everybody, self.run, self.patience)

    def fine_tune(self) -> None:
        """Let the sites that have no adapter yet train one."""
        if all(introduction.kind != "none" for introduction in self.introductions):
            return
        about = encode_run(self.run)
        answers = ask(self.grid, self.cohort, "train.finetune", "fine-tuning", about, self._trained)
        trained = dict(answers)
        self.cohort.introductions |= trained
        self.introductions = _sorted(
            trained.get(introduction.site, introduction) for introduction in self.introductions
        )

    def begin_journal(self) -> None:
        """From here on, what is solved is kept."""
        self.journal.open(
            {
                "run": self.run,
                "base": self.base.fingerprint,
                "plan": self.plan.digest,
                "settings": self.settings.digest(),
                "methods": [method.name for method in self.methods],
                "learning": {
                    key: value
                    for key, value in self.settings.flat().items()
                    if key.partition(".")[0] in {m.table for m in self.methods if m.learns}
                },
                "sites": {one.site: asdict(one) for one in self.introductions},
            }
        )

    def average_remainder(self) -> dict[str, Tensor]:
        """What full fine-tuning changed outside of the linear layers, averaged over the sites.

        It must be known before the chain starts, since the chain's inputs depend on it; and it is
        kept, since a run that is resumed without a site would get another mean.
        """
        if all(introduction.kind == "lora" for introduction in self.introductions):
            return {}
        kept = self.journal.load_remainder()
        if kept is not None:
            return kept
        sums: dict[str, ExactSum] = {}
        about, count = encode_run(self.run), 0
        for _site, tensors in ask(
            self.grid, self.cohort, "train.remainder", "remainder", about, self._remainder
        ):
            count += 1
            for name, values in tensors.items():
                sums.setdefault(name, ExactSum(tuple(values.shape))).add(values.double())
        mean = {name: (total.total() / count).float() for name, total in sorted(sums.items())}
        self.journal.keep_remainder(mean)
        return mean

    def dismiss(self) -> None:
        """Tell the sites that the run is finished, so that they forget it.

        Nobody waits long for that: a site that is away keeps its files until it is purged.
        """
        waiting = {
            message_id
            for site in self.cohort.names
            for message_id in self.grid.push_messages([self._goodbye(site)])
            if message_id
        }
        until = time.monotonic() + _GOODBYE_SECONDS
        while waiting and time.monotonic() < until:
            for message_id in tuple(waiting):
                if list(self.grid.pull_messages([message_id])):
                    waiting.remove(message_id)
            if waiting:
                time.sleep(_POLL_SECONDS)

    def _goodbye(self, site: str) -> Message:
        node = self.cohort.node_of(site)
        return Message(
            encode_run(self.run), node, "query.finished", ttl=_GOODBYE_SECONDS, group_id="finished"
        )

    def merge(self, method: Method, remainder: Mapping[str, Tensor]) -> MergedModel:
        """Play one method."""
        if method.granularity is None:
            return self._play_rounds(method, remainder)
        started = time.perf_counter()
        effective = settings_for(method.name, self.settings)
        dense = self.settings.merge.products == "dense" or any(
            introduction.kind == "full" for introduction in self.introductions
        )
        strategy = ChainOfMerges(
            plan=self.plan,
            cohort=self.cohort,
            settings=self.settings,
            method=method.name,
            run=self.run,
            form=ProductForm(dense, with_updates=effective.merge.anchor == "mean"),
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
            lost=_lost(strategy.solved),
            groups=_figures(strategy.steps, strategy.solved),
            prefix=strategy.final_prefix,
        )

    def evaluate(self, kind: str, merged: MergedModel | None = None) -> dict[str, Score]:
        """Held-out accuracy at every site: of the base model, the sites' own, or a merged one."""
        label = merged.method.label if merged else kind
        content = encode_model(self._model(kind, merged))
        scores: dict[str, Score] = {}
        for site, score in ask(
            self.grid, self.cohort, "evaluate.model", f"evaluation of {label}", content, _score
        ):
            scores[site] = score
            report_progress(f"evaluating {label}", len(scores), len(self.cohort.names))
        return dict(sorted(scores.items()))

    def measure_shift(self, merged: MergedModel) -> dict[str, dict[str, float]]:
        """Eq. 8 of a merged model: by group, then by site."""
        by_group: dict[str, dict[str, float]] = {g.name: {} for g in self.plan.groups}
        content = encode_model(self._model("merged", merged))
        what = f"covariate shift, {merged.method.label}"
        answers = ask(self.grid, self.cohort, "query.shift", what, content, self._shifts)
        for done, (site, shifts) in enumerate(answers, start=1):
            for group, value in shifts.items():
                by_group[group][site] = value
            report_progress(what, done, len(self.cohort.names))
        return {group: dict(sorted(sites.items())) for group, sites in by_group.items()}

    def _play_rounds(self, method: Method, remainder: Mapping[str, Tensor]) -> MergedModel:
        started = time.perf_counter()
        journal = self.journal.rounds_of(method.name)
        rounds = rounds_of(Play(method, self.plan, self.cohort, self.settings, remainder, journal))
        report_progress(method.label, rounds.played, rounds.count)
        strategy = RoundByRound(
            self.cohort,
            rounds,
            lambda: report_progress(method.label, rounds.played, rounds.count),
        )
        strategy.play(self.grid)
        merged = compressed(rounds.merged, self.settings.merge.rank)
        return MergedModel(
            method=method,
            updates=merged.updates,
            remainder=rounds.remainder,
            lost=strategy.lost,
            rounds=rounds.count,
            seconds=time.perf_counter() - started,
            bytes_up=rounds.traffic.up,
            bytes_down=rounds.traffic.down,
            figures=merged.figures,
        )

    def _model(self, kind: str, merged: MergedModel | None) -> ModelToMeasure:
        updates = merged.updates if merged else {}
        remainder = merged.remainder if merged else {}
        return ModelToMeasure(self.run, kind, self.plan.layer_names, updates, remainder)

    def _trained(self, site: str, content: RecordDict) -> Introduction:
        introduction = _introduction(site, content)
        before = self.cohort.introductions[site]
        differing = [
            field
            for field in vars(before)
            if field not in FOUND_OUT_BY_TRAINING and _differs(before, introduction, field)
        ]
        if differing or introduction.kind == "none":
            raise RefusedReplyError(f"after fine-tuning it has another {', '.join(differing)}")
        check_layers(introduction, self.whole_plan)
        return introduction

    def _remainder(self, site: str, content: RecordDict) -> dict[str, Tensor]:
        parameters = {n: tuple(p.shape) for n, p in self.base.backbone.named_parameters()}
        with refusing_malformed():
            record = content.array_records["remainder"]
            shapes = {name: parameters[name] for name in record}
            tensors = read_arrays(record, shapes)
        for name, values in tensors.items():
            if not bool((values.abs() < LIMIT).all()):  # False for NaN too
                raise RefusedReplyError(f"remainder of {name!r}: not finite, or beyond 2⁴²")
        return tensors

    def _shifts(self, site: str, content: RecordDict) -> dict[str, float]:
        with refusing_malformed():
            record = content.config_records["shift"]
            names, values = read_list(record, "groups", str), read_list(record, "shifts", float)
            shifts = dict(zip(names, values, strict=True))
        if shifts.keys() != {group.name for group in self.plan.groups}:
            raise RefusedReplyError("the shifts are of other groups than those of the plan")
        return shifts

    def _wait_for_nodes(self) -> list[int]:
        deadline = time.monotonic() + self.settings.timeout
        while len(nodes := sorted(self.grid.get_node_ids())) < self.settings.min_sites:
            if time.monotonic() > deadline:
                raise CohortError(
                    f"{len(nodes)} of min-sites = {self.settings.min_sites} sites connected "
                    f"within {self.settings.timeout:.0f} s"
                )
            time.sleep(_POLL_SECONDS)
        return nodes


def _introduction(_site: str, content: RecordDict) -> Introduction:
    return decode_introduction(content)


def _differs(before: Introduction, after: Introduction, field: str) -> bool:
    return bool(getattr(before, field) != getattr(after, field))


def _sorted(introductions: Iterable[Introduction]) -> tuple[Introduction, ...]:
    return tuple(sorted(introductions, key=lambda one: one.site))


def _score(_site: str, content: RecordDict) -> Score:
    with refusing_malformed():
        metrics = content.metric_records["metrics"]
        accuracy, samples = read(metrics, "accuracy", float), read(metrics, "num-examples", int)
    if not 0 <= accuracy <= 1 or samples < 0:
        raise RefusedReplyError(f"an accuracy of {accuracy} over {samples} rows")
    return Score(accuracy, samples)


def _bytes_up(solved: SolvedStep) -> int:
    return sum(count for sites in solved.bytes_up.values() for count in sites.values())


def _lost(solved: Sequence[SolvedStep]) -> dict[str, int]:
    rounds: dict[str, int] = {}
    for step in solved:
        for site in step.lost:
            rounds.setdefault(site, step.index + 1)
    return dict(sorted(rounds.items()))


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
                influence=solution.influence,
                lost=done.lost,
            )
    return tuple(by_group.values())
