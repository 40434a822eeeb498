"""One run, phase by phase: handshake, fine-tuning, merges, evaluation. What comes out is values."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from flwr.app import RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from layerweld.errors import CohortError, LostSiteError, RefusedReplyError
from layerweld.merging.method import CHAIN, Method
from layerweld.model.base_model import BaseModel, load_base, tokenizer_fingerprint
from layerweld.model.discover import discover_plan
from layerweld.plan import MergePlan
from layerweld.report.results import Score
from layerweld.runtime.progress import report_progress
from layerweld.settings.methods import methods_of
from layerweld.settings.run import RunSettings
from layerweld.transport.evaluation import EVALUATION, EVALUATION_LAYOUT, decode_accuracy
from layerweld.transport.identity import encode_plain
from layerweld.transport.model import ModelToMeasure, encode_model
from layerweld.transport.shift import SHIFT, decode_shifts, shifts_layout
from layerweld.transport.site_info import (
    FINE_TUNING,
    HANDSHAKE,
    SITE_INFO_BUDGET,
    SiteInfo,
    decode_site_info,
    facts_of,
)
from server.handshake import check_cohort, check_layers, merged_layers, own_versions, read_trained
from server.journal import RunJournal
from server.merged_model import MergedModel, merged_by
from strategies.by_method import rounds_of
from strategies.cohort import Cohort, Patience, require_same_training
from strategies.merge_strategy import MergeStrategy
from strategies.notices import RoundProgress, notice
from strategies.other_params import OtherParams
from strategies.poll import poll

_POLL_SECONDS = 0.2


class Federation:
    """The server's side of one run.

    Args:
        grid: Flower's grid.
        settings: of the run.
        base: folder of the base model at the server.
        journal: where finished rounds are kept.
    """

    def __init__(self, grid: Grid, settings: RunSettings, base: str, journal: RunJournal) -> None:
        self.grid = grid
        self.settings = settings
        self.methods = methods_of(settings)
        self.base: BaseModel = load_base(base, settings.base_name)
        self.whole_plan = discover_plan(self.base.backbone)
        self.journal = journal
        self.run = journal.run_id()
        self.patience = Patience.of(settings)
        self.waiting: dict[str, str] = {}
        """The sites that have not replied to the current request, each with its last failure."""
        self.cohort = Cohort({}, {}, self.run, self.patience)
        self.site_infos: tuple[SiteInfo, ...] = ()

    @property
    def plan(self) -> MergePlan:
        """The layers that are merged."""
        return merged_layers(self.site_infos, self.whole_plan)

    @property
    def lost(self) -> Mapping[str, str]:
        """Why each site that the run continues without was given up."""
        return dict(sorted(self.cohort.lost.items()))

    @property
    def ignored(self) -> Mapping[str, int]:
        """Replies that were dropped so far, by kind."""
        return self.cohort.ignored

    @property
    def sites_can_evaluate(self) -> bool:
        """Whether every site has a head and labelled held-out samples."""
        return not self.bare_sites

    @property
    def bare_sites(self) -> list[str]:
        """Names of the sites that have no head, or no held-out samples."""
        return [one.site for one in self.site_infos if not one.evaluates]

    def meet_sites(self) -> None:
        """Wait for the sites, ask each who it is, and refuse a cohort that does not fit."""
        begun_with = self.journal.remaining()
        nodes = {f"node {node}": node for node in self._wait_for_nodes(len(begun_with))}
        patience = Patience.of_handshake(self.settings)
        unnamed = Cohort(nodes, {}, self.run, patience, self.waiting)
        self.cohort = unnamed
        came: dict[str, SiteInfo] = {}
        replies = poll(
            self.grid,
            unnamed,
            HANDSHAKE,
            "handshake",
            encode_plain(HANDSHAKE, self.run),
            lambda _node, content: decode_site_info(content),
            SITE_INFO_BUDGET,
        )
        for node, info in replies:
            came[node] = info
            report_progress("handshake", len(came), len(nodes))
        check_cohort(
            tuple(came.values()),
            base=self.base.fingerprint,
            tokenizer=tokenizer_fingerprint(self.base.folder),
            plan=self.whole_plan,
            settings=self.settings.digest(),
            prefix=self.base.prefix,
            versions=own_versions(),
        )
        at = {info.site: nodes[node] for node, info in came.items()}
        known = {info.site: info for info in came.values()}
        absent = self.journal.absent(known)
        self.site_infos = _sorted((*came.values(), *absent))
        everybody = {info.site: info for info in self.site_infos}
        self.cohort = Cohort(at, everybody, self.run, self.patience, self.waiting)
        for site in sorted(begun_with - known.keys()):
            self._do_without(site)

    def _do_without(self, site: str) -> None:
        """A resumed run lacks a site that it began with: the policy says whether it continues.

        Raises:
            LostSiteError: it does not, or too few sites would be left.
        """
        why = f"it did not connect within {self.settings.timeout:.0f} s after the run was resumed"
        if self.patience.lost_site != "continue":
            raise LostSiteError(
                f"{site}: {why}, and the run began with it. With lost-site = continue the run "
                f"continues without it"
            )
        self.cohort.lose(site, why)
        notice(f"going on without {site}: {why}")

    def fine_tune(self) -> None:
        """Let the sites that have no adapter yet train one."""
        if all(info.kind != "none" for info in self.site_infos):
            return
        replies = poll(
            self.grid,
            self.cohort,
            FINE_TUNING,
            "fine-tuning",
            encode_plain(FINE_TUNING, self.run),
            self._trained,
            SITE_INFO_BUDGET,
        )
        trained = dict(replies)
        self.cohort.site_infos |= trained
        self.site_infos = _sorted(trained.get(info.site, info) for info in self.site_infos)

    def begin_journal(self) -> None:
        """Keep what is finished from here on."""
        in_rounds = (m for m in self.methods if m.kind is CHAIN or m.kind.learns)
        own = {table for method in in_rounds for table in method.tables}
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
                    if key.partition(".")[0] in own
                },
                "sites": {one.site: facts_of(one) for one in self.site_infos},
            }
        )

    def average_other_params(self) -> Mapping[str, Tensor]:
        """What full fine-tuning changed outside of the linear layers, averaged over the sites.

        It must be known before the chain starts, because the chain's inputs depend on it. It is
        kept, because a run that is resumed without a site would get another mean.

        Raises:
            JournalError: it is not kept any more, but rounds that were measured behind it are.
        """
        if all(info.kind == "lora" for info in self.site_infos):
            return {}
        whole = {one.site for one in self.site_infos if one.kind == "full"}
        rounds = OtherParams(self.cohort, self._parameters_outside_of_layers(), whole)
        strategy = MergeStrategy(self.cohort, rounds, self.journal.of_other_params())
        if not strategy.finished:
            self.journal.require_nothing_kept()
        strategy.run(self.grid)
        return rounds.outcome().other_params

    def _parameters_outside_of_layers(self) -> dict[str, tuple[int, ...]]:
        weights = {f"{layer}.weight" for layer in self.whole_plan.layer_names}
        parameters = self.base.backbone.named_parameters()
        return {name: tuple(p.shape) for name, p in parameters if name not in weights}

    def merge(self, method: Method, other_params: Mapping[str, Tensor]) -> MergedModel:
        """Run one method."""
        started = time.perf_counter()
        rounds = rounds_of(method, self.plan, self.cohort, self.settings, other_params)
        journal = self.journal.of_method(method.name)
        progress = RoundProgress(method.label, rounds.count)
        strategy = MergeStrategy(self.cohort, rounds, journal, progress)
        strategy.run(self.grid)
        return merged_by(strategy, method, started)

    def evaluate(self, kind: str, merged: MergedModel | None = None) -> dict[str, Score]:
        """Held-out accuracy at every site: of the base model, the sites' own, or a merged one."""
        label = merged.method.label if merged else kind
        content = encode_model(EVALUATION, self._model(kind, merged))
        scores: dict[str, Score] = {}
        for site, score in poll(
            self.grid, self.cohort, EVALUATION, f"evaluation of {label}", content,
            lambda _site, reply: Score(*decode_accuracy(reply)), EVALUATION_LAYOUT.budget,
        ):  # fmt: skip
            scores[site] = score
            report_progress(f"evaluating {label}", len(scores), len(self.cohort.names))
        return dict(sorted(scores.items()))

    def measure_shift(self, merged: MergedModel) -> dict[str, dict[str, float]]:
        """Eq. 8 of a merged model: by group, then by site."""
        by_group: dict[str, dict[str, float]] = {g.name: {} for g in self.plan.groups}
        content = encode_model(SHIFT, self._model("merged", merged))
        groups = by_group.keys()
        what = f"covariate shift, {merged.method.label}"
        replies = poll(
            self.grid,
            self.cohort,
            SHIFT,
            what,
            content,
            lambda _site, found: decode_shifts(found, groups),
            shifts_layout(groups).budget,
        )
        for done, (site, shifts) in enumerate(replies, start=1):
            for group, value in shifts.items():
                by_group[group][site] = value
            report_progress(what, done, len(self.cohort.names))
        return {group: dict(sorted(sites.items())) for group, sites in by_group.items()}

    def _model(self, kind: str, merged: MergedModel | None) -> ModelToMeasure:
        updates = merged.updates if merged else {}
        other_params = merged.other_params if merged else {}
        return ModelToMeasure(self.run, kind, self.plan.layer_names, updates, other_params)

    def _trained(self, site: str, content: RecordDict) -> SiteInfo:
        info = read_trained(content, self.cohort.site_infos[site])
        try:
            check_layers(info, self.whole_plan, self.base.prefix)
        except CohortError as error:  # about one reply: it is asked for again before the run ends
            raise RefusedReplyError(str(error)) from error
        begun = self.journal.site_info_of(site)
        if begun is not None:
            require_same_training(begun, info)
        return info

    def _wait_for_nodes(self, begun_with: int) -> list[int]:
        """Nodes, once there are enough; for a resumed run as many as it had, if they come.

        Raises:
            CohortError: too few came in time.
        """
        fewest, timeout = self.settings.min_sites, self.settings.timeout
        until = time.monotonic() + timeout
        wanted, said = max(fewest, begun_with), -1
        while len(nodes := sorted(self.grid.get_node_ids())) < wanted:
            if len(nodes) != said:
                said = len(nodes)
                notice(f"waiting for sites: {said} of {wanted} are connected")
            if time.monotonic() > until:
                break
            time.sleep(_POLL_SECONDS)
        if len(nodes) < fewest:
            raise CohortError(
                f"{len(nodes)} of min-sites = {fewest} sites connected within {timeout:.0f} s"
            )
        return nodes


def _sorted(site_infos: Iterable[SiteInfo]) -> tuple[SiteInfo, ...]:
    return tuple(sorted(site_infos, key=lambda one: one.site))
