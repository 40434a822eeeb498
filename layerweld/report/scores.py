"""What the accuracies of a run add up to: pure numbers, shared by the report and the tables."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from layerweld.report.results import MethodResult, RunResults, Score

REFERENCES = ("base", "individual")
"""Methods that are no merges: what the sites started from, and what each reached alone."""

_Z95 = 1.959964


@dataclass(frozen=True)
class Summary:
    """One method over the compared sites; fractions, not percent."""

    mean: float
    """Mean accuracy."""
    mean_normalised: float | None
    """Mean of accuracy / individual's accuracy; None when that was not measured."""
    worst: tuple[str, float] | None
    """Site with the lowest normalised accuracy, and that accuracy."""
    half_width: float
    """Sampling error of ``mean_normalised`` (else of ``mean``): half of a 95 % interval."""

    @property
    def score(self) -> float:
        """What methods are ranked by."""
        return self.mean if self.mean_normalised is None else self.mean_normalised


def half_width(score: Score) -> float:
    """Half of the binomial 95 % interval of an accuracy (Wilson: above 0 even at 0 % or 100 %)."""
    n, p = score.samples, score.accuracy
    if n == 0:
        return 0.5
    return _Z95 * sqrt(p * (1 - p) / n + (_Z95 / (2 * n)) ** 2) / (1 + _Z95**2 / n)


def evaluated(results: RunResults) -> tuple[MethodResult, ...]:
    """The methods that have scores, in the run's order."""
    return tuple(m for m in results.methods if m.scores)


def normalised(results: RunResults, method: MethodResult, site: str) -> float | None:
    """Accuracy as a fraction of what the site reached alone; None where either is missing or 0."""
    individual = results.method("individual")
    if individual is None or site not in individual.scores or site not in method.scores:
        return None
    alone = individual.scores[site].accuracy
    return method.scores[site].accuracy / alone if alone > 0 else None


def scored_sites(results: RunResults) -> tuple[str, ...]:
    """Sites with at least one score, in the run's order."""
    return tuple(s.name for s in results.sites if any(s.name in m.scores for m in results.methods))


def compared_sites(results: RunResults) -> tuple[str, ...]:
    """Sites at which every evaluated method has a score: only over these is a mean fair.

    A site whose individual model scores 0 is left out, because nothing can be a fraction of it.
    """
    methods = evaluated(results)
    common = [s.name for s in results.sites if methods and all(s.name in m.scores for m in methods)]
    individual = results.method("individual")
    if individual is None or not individual.scores:
        return tuple(common)
    return tuple(s for s in common if individual.scores[s].accuracy > 0)


def summarise(results: RunResults, method: MethodResult) -> Summary | None:
    """One method over the compared sites; None when there are none or it was not evaluated."""
    sites = compared_sites(results)
    if not sites or not method.scores:
        return None
    scores = [method.scores[s] for s in sites]
    ratios = {s: r for s in sites if (r := normalised(results, method, s)) is not None}
    scales = [
        ratios[s] / score.accuracy if s in ratios and score.accuracy else 1.0
        for s, score in zip(sites, scores, strict=True)
    ]
    errors = [half_width(score) * scale for score, scale in zip(scores, scales, strict=True)]
    return Summary(
        mean=sum(s.accuracy for s in scores) / len(sites),
        mean_normalised=sum(ratios.values()) / len(ratios) if ratios else None,
        worst=min(ratios.items(), key=lambda item: item[1]) if ratios else None,
        half_width=sqrt(sum(e * e for e in errors)) / len(sites),
    )


def summaries(results: RunResults) -> dict[str, Summary]:
    """All evaluated methods by name, in the run's order."""
    by_method = {m.name: summarise(results, m) for m in evaluated(results)}
    return {name: summary for name, summary in by_method.items() if summary is not None}


def best_merges(values: dict[str, float]) -> frozenset[str]:
    """Names of the merges with the largest value (several when they tie); references never win."""
    merges = {name: value for name, value in values.items() if name not in REFERENCES}
    top = max(merges.values(), default=0.0)
    return frozenset(name for name, value in merges.items() if top - value < 1e-9)


def best_at(results: RunResults, site: str) -> frozenset[str]:
    """Names of the merges with the highest accuracy at one site."""
    return best_merges(
        {m.name: m.scores[site].accuracy for m in results.methods if site in m.scores}
    )
