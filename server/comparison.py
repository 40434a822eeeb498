"""Many methods on the same sites and adapters, once per seed. What comes out is values."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid

from layerweld.errors import ConfigError
from layerweld.report.comparison.results import Comparison, Entry, Refusal
from layerweld.report.comparison.spreads import mean_normalised
from layerweld.report.results import MethodResult, SiteSummary
from layerweld.report.scores import REFERENCES
from layerweld.runtime.progress import report_progress
from layerweld.settings.grids import candidates, with_candidate
from layerweld.settings.methods import Method, methods_of
from layerweld.settings.run import RunSettings, Scalar, read_run_settings
from server.federation import Federation
from server.journal import RunJournal
from server.output import method_result, summary_of
from server.peak_memory import peak_resident
from server.played_methods import PlayedMethods, deciding_facts
from server.requirements import problem_with
from server.run import reference_result

Play = Callable[[RunSettings], Grid]
_MEASURES_ONLY = ("merge.influence", "merge.covariate-shift")
_VALIDATION_SHARE = 0.2  # of a site's rows, set aside to choose settings on


def compare(
    play: Play,
    settings: RunSettings,
    base: str,
    seeds: Sequence[int],
    budget: int,
    kept: PlayedMethods,
    on_played: Callable[[RunSettings, str], None] = lambda _settings, _run: None,
    on_known: Callable[[Comparison], None] = lambda _known: None,
) -> Comparison:
    """Play the run's methods once per seed, with the same adapters, rows and budget for each.

    Args:
        play: gives the grid that plays a run with these settings.
        settings: of the run; ``methods`` says what is compared.
        base: folder of the base model at the server.
        seeds: each takes the place of ``calibration.seed`` and of every method's own seed.
        budget: candidates per method; with more than 1 each site sets a fifth of its rows aside,
            trains and calibrates on the others, and the candidate with the best mean normalised
            accuracy on that fifth is taken. Held-out rows choose nothing.
        kept: what is found there is not played again; what is played is kept there.
        on_played: called with the settings and the identifier of each run that is over.
        on_known: called after each method, with all that is known by then.

    Raises:
        ConfigError: the sites cannot evaluate.
    """
    entries: list[Entry] = []
    for seed in seeds:
        report_progress("comparing, seed", seeds.index(seed), len(seeds))
        changed = _with_seed(settings, seed, budget)
        played = _Seed(play, on_played, changed, base, seed, budget, kept)
        for entry in played.entries():
            entries.append(entry)
            known = _known(settings, base, played, entries)
            if entry.result.name not in REFERENCES:
                on_known(known)
    report_progress("comparing, seed", len(seeds), len(seeds))
    on_known(known)
    return known


def _known(settings: RunSettings, base: str, played: _Seed, entries: Sequence[Entry]) -> Comparison:
    order = (*REFERENCES, *(method.name for method in played.methods))
    seeds = tuple(dict.fromkeys(entry.seed for entry in entries))
    in_order = sorted(entries, key=lambda e: (seeds.index(e.seed), order.index(e.result.name)))
    return Comparison(
        name=settings.name,
        base=Path(base).resolve().name,
        sites=played.sites,
        seeds=seeds,
        budget=played.budget,
        entries=tuple(in_order),
        refused=played.refused,
        given=_given(settings, played.methods),
    )


def _given(settings: RunSettings, methods: Sequence[Method]) -> dict[str, Scalar]:
    """What the run sets otherwise than a method's default, of all that changes a merge."""
    tables = {method.table for method in methods} | {"lines"}
    usual = RunSettings().flat()
    return {
        key: value
        for key, value in settings.flat().items()
        if key.partition(".")[0] in tables and key not in _MEASURES_ONLY and value != usual[key]
    }


class _Seed:
    """All federations of one seed."""

    def __init__(
        self,
        play: Play,
        on_played: Callable[[RunSettings, str], None],
        settings: RunSettings,
        base: str,
        seed: int,
        budget: int,
        kept: PlayedMethods,
    ) -> None:
        self.play = play
        self.on_played = on_played
        self.settings = settings
        self.base = base
        self.seed = seed
        self.budget = budget
        self.kept = kept
        self.methods = methods_of(settings)
        self.sites: tuple[SiteSummary, ...] = ()
        self.refused: tuple[Refusal, ...] = ()

    def entries(self) -> Iterator[Entry]:
        """References first, then every method that can work, as they are played."""
        chosen = self._choose() if self.budget > 1 else {m.name: 0 for m in self.methods}
        for number in sorted({0, *chosen.values()}):
            methods = [m for m in self.methods if chosen[m.name] == number]
            yield from self._played(self.settings, methods, number, references=number == 0)

    def _choose(self) -> dict[str, int]:
        """The best candidate of each method on the rows that were set aside, by number."""
        evaluate = self.settings.evaluate.model_copy(update={"rows": "validation"})
        settings = self.settings.model_copy(update={"evaluate": evaluate})
        best = {method.name: (float("-inf"), 0) for method in self.methods}
        individual: MethodResult | None = None
        for number in range(self.budget):
            methods = [m for m in self.methods if number < len(candidates(m, self.budget))]
            played = list(self._played(settings, methods, number, references=individual is None))
            for entry in played:
                if entry.result.name == "individual":
                    individual = entry.result
            assert individual is not None
            for entry in played:
                name = entry.result.name
                if name in best:
                    score = mean_normalised(entry.result, individual)
                    best[name] = max(best[name], (score, number), key=lambda pair: pair[0])
        return {name: number for name, (_, number) in best.items()}

    def _played(
        self, settings: RunSettings, methods: Sequence[Method], number: int, *, references: bool
    ) -> Iterator[Entry]:
        """One federation: every method with its candidate of that number."""
        settings = with_candidate(settings, number)
        with tempfile.TemporaryDirectory() as folder:
            grid, journal = self.play(settings), RunJournal(Path(folder) / "journal")
            federation = Federation(grid, settings, self.base, journal)
            federation.introduce()
            federation.fine_tune()
            self._check(federation)
            for kind in REFERENCES if references else ():
                play = partial(self._reference, federation, kind)
                yield self._once(federation, kind, (), play)
            for method in methods:
                if problem_with(method, settings, federation.site_infos):
                    continue
                tables = (method.table, "lines") if method.lines else (method.table,)
                play = partial(self._merged, federation, method, number)
                yield self._once(federation, method.name, tables, play)
        self.on_played(settings, federation.run)

    def _once(
        self,
        federation: Federation,
        name: str,
        tables: tuple[str, ...],
        play: Callable[[], Entry],
    ) -> Entry:
        """What was kept of it, or else what is played and kept now."""
        facts = deciding_facts(federation, name, tables)
        found = self.kept.find(name, facts)
        if found is None:
            found = play()
            self.kept.keep(facts, found)
        return found

    def _reference(self, federation: Federation, kind: str) -> Entry:
        return Entry(self.seed, reference_result(federation, kind))

    def _merged(self, federation: Federation, method: Method, number: int) -> Entry:
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
                f"{federation.bare_sites[0]} has no head or no labelled held-out rows, so methods "
                f"cannot be compared on it: set `held-out`, and let the site fine-tune, put its "
                f"head beside its adapter, or name it with `head`"
            )
        self.sites = tuple(summary_of(one) for one in federation.site_infos)
        problems = {
            method: problem_with(method, federation.settings, federation.site_infos)
            for method in self.methods
        }
        self.refused = tuple(
            Refusal(method.name, method.label, problem)
            for method, problem in problems.items()
            if problem
        )


def _with_seed(settings: RunSettings, seed: int, budget: int) -> RunSettings:
    """The settings with one seed everywhere, and with rows set aside where something is chosen."""
    flat = dict(settings.flat())
    flat |= {key: seed for key in flat if key.endswith(".seed")}
    if budget > 1:
        flat["calibration.validation"] = _VALIDATION_SHARE
    return read_run_settings(flat)
