"""What a comparison's accuracies add up to over sites and seeds: pure numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from layerweld.report.comparison.results import Comparison, Entry
from layerweld.report.results import MethodResult
from layerweld.report.scores import half_width


@dataclass(frozen=True)
class Spread:
    """One number over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of all seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None with a single one."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class MethodOverSeeds:
    """One method over all seeds and sites; fractions, seconds and bytes."""

    name: str
    label: str
    accuracy: Spread
    normalised: Spread
    """Mean over the sites of accuracy / accuracy of the site's own model."""
    worst: Spread
    """The same at each seed's worst site."""
    worst_site: str
    """Where the mean over the seeds is lowest."""
    sites: dict[str, Spread]
    """Accuracy by site."""
    half_width: float
    """Sampling error of the mean over sites of ``normalised``: half of a 95 % interval. Seeds are
    judged on the same held-out samples, so it does not shrink with their number."""
    rounds: int
    bytes_up: float
    bytes_down: float
    seconds: float
    """Of merging alone, evaluation left out; mean over the seeds."""
    peak_bytes: int | None
    """Largest over the seeds."""
    tuned: tuple[str, ...]
    """Settings chosen, one text per seed; empty where nothing was tuned."""


def shares(method: MethodResult, individual: MethodResult) -> dict[str, float]:
    """Normalised accuracy by site, of the sites whose own model is ever right."""
    alone = {site: score.accuracy for site, score in individual.scores.items()}
    return {
        site: score.accuracy / alone[site]
        for site, score in method.scores.items()
        if alone[site] > 0
    }


def mean_normalised(method: MethodResult, individual: MethodResult) -> float:
    """Mean over the sites; 0 where no site's own model is ever right."""
    return fmean(shares(method, individual).values() or [0.0])


def over_seeds(comparison: Comparison) -> list[MethodOverSeeds]:
    """References first, then the methods in the comparison's order."""
    names = dict.fromkeys(entry.result.name for entry in comparison.entries)
    return [
        _line([e for e in comparison.entries if e.result.name == name], individuals(comparison))
        for name in names
    ]


def individuals(comparison: Comparison) -> dict[int, MethodResult]:
    """What each site reached alone, by seed."""
    return {e.seed: e.result for e in comparison.entries if e.result.name == "individual"}


def _line(entries: list[Entry], alone: dict[int, MethodResult]) -> MethodOverSeeds:
    results = [entry.result for entry in entries]
    by_seed = [shares(entry.result, alone[entry.seed]) for entry in entries]
    means = {site: fmean(sites[site] for sites in by_seed) for site in by_seed[0]}
    missing = f" ({len(entries)} of {len(alone)} seeds)" if len(entries) < len(alone) else ""
    peaks = [entry.peak_bytes for entry in entries if entry.peak_bytes is not None]
    return MethodOverSeeds(
        name=results[0].name,
        label=results[0].label + missing,
        accuracy=Spread(tuple(fmean(s.accuracy for s in r.scores.values()) for r in results)),
        normalised=Spread(tuple(mean_normalised(e.result, alone[e.seed]) for e in entries)),
        worst=Spread(tuple(min(sites.values(), default=0.0) for sites in by_seed)),
        worst_site=min(means, key=means.__getitem__, default=""),
        sites={
            site: Spread(tuple(r.scores[site].accuracy for r in results))
            for site in results[0].scores
        },
        half_width=fmean(_half_width(e.result, alone[e.seed]) for e in entries),
        rounds=results[0].rounds,
        bytes_up=fmean(r.bytes_up for r in results),
        bytes_down=fmean(r.bytes_down for r in results),
        seconds=fmean(r.seconds for r in results),
        peak_bytes=max(peaks, default=None),
        tuned=tuple(_tuned_text(e) for e in entries) if any(e.tuned for e in entries) else (),
    )


def _half_width(method: MethodResult, individual: MethodResult) -> float:
    """Of the mean of independent sites, each as far off as its held-out samples let it be."""
    own = {site: score.accuracy for site, score in individual.scores.items() if score.accuracy > 0}
    widths = [half_width(method.scores[site]) / accuracy for site, accuracy in own.items()]
    return sqrt(sum(width**2 for width in widths)) / len(widths) if widths else 0.0


def _tuned_text(entry: Entry) -> str:
    return ", ".join(f"{key}={value}" for key, value in entry.tuned.items()) or "default"
