"""Many methods on the same sites and adapters, once per seed. What comes out is values."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid

from layerweld.errors import ConfigError
from layerweld.merging.method import Method
from layerweld.report.comparison.results import Comparison, Entry, Refusal
from layerweld.report.comparison.spreads import mean_normalised
from layerweld.report.results import MethodResult, SiteSummary
from layerweld.report.scores import REFERENCES
from layerweld.runtime.peak_memory import peak_resident
from layerweld.runtime.progress import report_progress
from layerweld.settings.comparison import ComparisonSettings, candidates, with_candidate
from layerweld.settings.methods import methods_of
from layerweld.settings.run import RunSettings
from server.federation import Federation
from server.journal import RunJournal
from server.kept_results import KeptResults, deciding_facts
from server.output import method_result, site_summary
from server.requirements import problem_with
from server.run import reference_result

OpenGrid = Callable[[RunSettings], Grid]
"""Gives the grid of a run with these settings."""
Forget = Callable[[RunSettings, str], None]
"""Called with the settings and the identifier of a run that is over."""


def compare(
    settings: ComparisonSettings,
    open_grid: OpenGrid,
    kept: KeptResults,
    forget: Forget,
    on_known: Callable[[Comparison], None],
) -> Comparison:
    """Run each method once per seed, with the same adapters, samples and budget for each.

    Args:
        settings: what is compared, and how.
        open_grid: for each run.
        kept: what is found there is not run again; what is run is kept there.
        forget: after each run.
        on_known: called after each method, with all that is known by then.

    Raises:
        ConfigError: the sites cannot evaluate.
    """
    entries: list[Entry] = []
    for number, seed in enumerate(settings.seeds):
        report_progress("comparing, seed", number, len(settings.seeds))
        one = _Seed(settings, seed, open_grid, kept, forget)
        for entry in one.entries():
            entries.append(entry)
            known = _known(settings, one, entries)
            if entry.result.name not in REFERENCES:
                on_known(known)
    report_progress("comparing, seed", len(settings.seeds), len(settings.seeds))
    on_known(known)
    return known


def _known(settings: ComparisonSettings, latest: _Seed, entries: Sequence[Entry]) -> Comparison:
    order = (*REFERENCES, *(method.name for method in latest.methods))
    seeds = tuple(dict.fromkeys(entry.seed for entry in entries))
    in_order = sorted(entries, key=lambda e: (seeds.index(e.seed), order.index(e.result.name)))
    return Comparison(
        name=settings.run.name,
        base=Path(settings.run.require_base()).resolve().name,
        sites=latest.sites,
        seeds=seeds,
        budget=settings.budget,
        entries=tuple(in_order),
        refused=latest.refused,
        given=settings.differences(),
    )


@dataclass
class _Seed:
    """All federations of one seed."""

    comparison: ComparisonSettings
    seed: int
    open_grid: OpenGrid
    kept: KeptResults
    forget: Forget
    sites: tuple[SiteSummary, ...] = ()
    refused: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        self.settings = self.comparison.with_seed(self.seed)
        self.base = self.comparison.run.require_base()
        self.budget = self.comparison.budget
        self.methods = methods_of(self.settings)

    def entries(self) -> Iterator[Entry]:
        """References first, then every method that can work, as they are run."""
        chosen = self._choose() if self.budget > 1 else {m.name: 0 for m in self.methods}
        for number in sorted({0, *chosen.values()}):
            methods = [m for m in self.methods if chosen[m.name] == number]
            yield from self._run(self.settings, methods, number, references=number == 0)

    def _choose(self) -> dict[str, int]:
        """The best candidate of each method on the samples that were set aside, by number."""
        evaluate = self.settings.evaluate.model_copy(update={"split": "validation"})
        settings = self.settings.model_copy(update={"evaluate": evaluate})
        best = {method.name: (float("-inf"), 0) for method in self.methods}
        individual: MethodResult | None = None
        for number in range(self.budget):
            methods = [m for m in self.methods if number < len(candidates(m, self.budget))]
            entries = list(self._run(settings, methods, number, references=individual is None))
            results = {entry.result.name: entry.result for entry in entries}
            individual = individual or results["individual"]
            for name in results.keys() & best.keys():
                score = mean_normalised(results[name], individual)
                best[name] = max(best[name], (score, number), key=lambda pair: pair[0])
        return {name: number for name, (_, number) in best.items()}

    def _run(
        self, settings: RunSettings, methods: Sequence[Method], number: int, *, references: bool
    ) -> Iterator[Entry]:
        """One federation: every method with its candidate of that number."""
        settings = with_candidate(settings, number)
        with tempfile.TemporaryDirectory() as folder:
            grid, journal = self.open_grid(settings), RunJournal(Path(folder) / "journal")
            federation = Federation(grid, settings, self.base, journal)
            federation.meet_sites()
            federation.fine_tune()
            self._check(federation)
            for kind in REFERENCES if references else ():
                run = partial(self._reference, federation, kind)
                yield self._once(federation, kind, (), run)
            for method in methods:
                if problem_with(method, settings, federation.site_infos):
                    continue
                run = partial(self._merge, federation, method, number)
                yield self._once(federation, method.name, method.tables, run)
        self.forget(settings, federation.run)

    def _once(
        self, federation: Federation, name: str, tables: tuple[str, ...], run: Callable[[], Entry]
    ) -> Entry:
        """What was kept of it, or else what is run and kept now."""
        facts = deciding_facts(federation, name, tables)
        entry = self.kept.find(name, facts)
        if entry is None:
            entry = run()
            self.kept.keep(facts, entry)
        return entry

    def _reference(self, federation: Federation, kind: str) -> Entry:
        return Entry(self.seed, reference_result(federation, kind))

    def _merge(self, federation: Federation, method: Method, number: int) -> Entry:
        other_params = federation.average_other_params()
        with peak_resident() as peak:
            merged = federation.merge(method, other_params)
            peak_bytes = peak()
        merged.scores.update(federation.evaluate("merged", merged))
        tuned = candidates(method, self.budget)[number]
        return Entry(self.seed, method_result(merged, {}), peak_bytes, tuned)

    def _check(self, federation: Federation) -> None:
        if not federation.sites_can_evaluate:
            raise ConfigError(
                f"{federation.bare_sites[0]} has no head or no labelled held-out samples, so "
                f"methods cannot be compared on it: set `held-out`, and let the site fine-tune, "
                f"put its head beside its adapter, or name it with `head`"
            )
        self.sites = tuple(map(site_summary, federation.site_infos))
        problems = {
            method: problem_with(method, federation.settings, federation.site_infos)
            for method in self.methods
        }
        self.refused = tuple(
            Refusal(method.name, method.label, problem)
            for method, problem in problems.items()
            if problem
        )
