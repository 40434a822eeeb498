"""Warnings about a cohort that the handshake accepts, before the sites compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from layerweld.plan import MergePlan
from layerweld.transport.site_info import SiteInfo

_SHOWN = ("cpu", "kernels", "threads", "torch", "mkl", "onednn", "libc", "gpu", "cuda")


def warnings_of(
    site_infos: Sequence[SiteInfo], plan: MergePlan, here: Mapping[str, str]
) -> Iterator[str]:
    """One sentence each, with the way out.

    Args:
        site_infos: of the whole cohort.
        plan: of the layers that are merged.
        here: the coordinator's numeric environment.
    """
    for found in (_too_few_tokens(site_infos, plan), _not_evaluated(site_infos)):
        if found:
            yield found
    yield from _names_that_differ(site_infos)
    yield from _twins(site_infos)
    yield from _skipped(site_infos)
    yield from _other_kinds(site_infos, here)


def _too_few_tokens(site_infos: Sequence[SiteInfo], plan: MergePlan) -> str | None:
    """Warn if all sites' tokens together are fewer than a group's features.

    The statistics are then singular, and the ridge alone decides the rest. Near equality the
    solution is at its worst (double descent).
    """
    tokens = sum(one.tokens for one in site_infos)
    widest = max(plan.groups, key=lambda group: group.d_in)
    if tokens >= 2 * widest.d_in:
        return None
    return (
        f"{tokens} calibration tokens over all sites for {widest.d_in} features of {widest.name}: "
        f"the ridge decides what the tokens do not. Give the sites more samples, or raise "
        f"merge.ridge (0.1 is safe here)"
    )


def _not_evaluated(site_infos: Sequence[SiteInfo]) -> str | None:
    """Warn if some sites could evaluate, and some could not."""
    bare = [one.site for one in site_infos if not one.evaluates]
    if not bare or len(bare) == len(site_infos):
        return None
    return (
        f"no accuracy will be measured, since {', '.join(bare)} cannot: a site needs labelled "
        f"samples in `held-out`, and a head (`head`, or one that it trains itself)"
    )


def of_most(names: Iterable[str]) -> str:
    """The name that more than half of the sites' adapters use; empty if there is none.

    Otherwise one site alone could change the names of the merged adapter's layers.
    """
    counted = Counter(names)
    name, sites = max(counted.items(), key=lambda item: item[1])
    return name if 2 * sites > counted.total() else ""


def _names_that_differ(site_infos: Sequence[SiteInfo]) -> Iterator[str]:
    """Warn of adapters that were trained inside another class of model, or for another task."""
    bring = [one for one in site_infos if one.kind == "lora"]
    for field, what in (("name_prefix", "beginning of layer names is"), ("task", "PEFT task is")):
        by_site = {one.site: getattr(one, field) for one in bring}
        if len(set(by_site.values())) > 1:
            chosen = of_most(getattr(one, field) for one in site_infos)
            said = ", ".join(f"{site}: {name or 'none'}" for site, name in sorted(by_site.items()))
            yield (
                f"the {what} not the same everywhere ({said}); the merged adapter has "
                f"{chosen or 'none'}. Train all on the same class of model to be sure that it loads"
            )


def _twins(site_infos: Sequence[SiteInfo]) -> Iterator[str]:
    """Warn of sites that bring the same adapter: it counts twice."""
    for one, other in combinations(sorted(site_infos, key=lambda found: found.site), 2):
        if one.adapter and one.adapter == other.adapter:
            yield (
                f"{one.site} and {other.site} bring the same adapter, which counts twice: check "
                f"their `adapter` paths, or leave one of them out"
            )


def _skipped(site_infos: Sequence[SiteInfo]) -> Iterator[str]:
    """Warn of samples that could not be read, which ``calibration.max-unreadable`` allows."""
    for one in site_infos:
        if one.skipped:
            yield (
                f"{one.site} has {one.skipped} samples that cannot be read and were skipped; "
                f"calibration.max-unreadable = 0 makes it an error that names the first"
            )


def _other_kinds(site_infos: Sequence[SiteInfo], here: Mapping[str, str]) -> Iterator[str]:
    """Warn of sites that round differently from the coordinator: no fault, but other last digits.

    The names of a site's variables are its own text, and stay out of the sentence.
    """
    for one in site_infos:
        there = dict(entry.partition("=")[::2] for entry in one.environment)
        differ = {name for name in {*there, *here} if there.get(name) != here.get(name)}
        others = [name for name in _SHOWN if name in differ]
        if differ - {*_SHOWN}:
            others.append("variables")
        if there and others:
            yield (
                f"{one.site} computes with another {', '.join(others)} than the coordinator: the "
                f"merge is as good, but its last digits differ from those on machines of one "
                f"kind; environment.json will have both, and `layerweld compare-runs` compares"
            )
