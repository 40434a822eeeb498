"""Whether the methods of a run can work on these sites' models: decided before computing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from layerweld.errors import CohortError
from layerweld.merging.method import UPDATES, Method, Need
from layerweld.settings.run import RunSettings
from layerweld.transport.site_info import SiteInfo

Sites = Sequence[SiteInfo]
_NAMED = 8  # sites in one sentence


def check_methods(methods: Sequence[Method], settings: RunSettings, sites: Sites) -> None:
    """Refuse a run with a method that could not work, by name of the method and of the site.

    Raises:
        CohortError: too few sites, or sites without what the method needs.
    """
    for method in methods:
        problem = problem_with(method, settings, sites)
        if problem:
            raise CohortError(
                f"{method.name}: {problem}. Leave it out of `methods`; `layerweld methods` "
                f"says what each one needs"
            )


def problem_with(method: Method, settings: RunSettings, sites: Sites) -> str | None:
    """Why a method cannot work on these sites' models; None if it can."""
    problems = (_CHECKS[need](sites) for need in method.needs)
    return _too_few(method, settings, sites) or next((p for p in problems if p), None)


def _too_few(method: Method, settings: RunSettings, sites: Sites) -> str | None:
    if method.kind is not UPDATES:
        return None
    fewest = settings.of_method(method.table).fewest_sites
    if len(sites) >= fewest:
        return None
    return (
        f"with the settings in [{method.table}] it needs {fewest} sites or more, and there are "
        f"{len(sites)}"
    )


def _lora(sites: Sites) -> str | None:
    full = [one.site for one in sites if one.kind == "full" or 0 in one.ranks]
    return f"it works on LoRA factors, and {full[0]} brings a whole model" if full else None


def _equal_ranks(sites: Sites) -> str | None:
    unlike = _unlike({one.site: _ranks(one) for one in sites}, "others")
    if not unlike:
        return None
    return (
        f"it averages factors entry by entry, so it needs the same layers and ranks at all sites, "
        f"and {unlike}; `flora` and `flexlora` take any"
    )


def _shared_factor(sites: Sites) -> str | None:
    for one in sites:
        if not one.factors:
            return (
                f"it needs one frozen A at all sites, and {one.site} trains its own: "
                f"fine-tune with finetune.freeze-a = true"
            )
    # The hash has no shapes in it: the ranks are part of what must be the same.
    unlike = _unlike({one.site: (one.factors, _ranks(one)) for one in sites}, "another")
    return f"it needs one frozen A at all sites, and {unlike}" if unlike else None


def _ranks(one: SiteInfo) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(zip(one.layers, one.ranks, strict=True)))


def _unlike(facts: Mapping[str, Hashable], others: str) -> str | None:
    """The sites that differ from more than half of all; every site if there is no such majority.

    No single site is the yardstick: one that lies would get an honest one named.
    """
    fact, count = Counter(facts.values()).most_common(1)[0]
    if count == len(facts):
        return None
    if 2 * count <= len(facts):
        return f"{_some(facts)} have different ones"
    return f"{_some(site for site in facts if facts[site] != fact)} has {others} than most sites"


def _some(sites: Iterable[str]) -> str:
    names = sorted(sites)
    return ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")


def _labels(sites: Sites) -> str | None:
    bare = [one.site for one in sites if not one.labelled]
    return (
        f"it needs labelled samples and a head at every site; {bare[0]} lacks one" if bare else None
    )


def _head(sites: Sites) -> str | None:
    bare = [one.site for one in sites if not one.classifies]
    if not bare:
        return None
    return (
        f"it needs a head at every site, and {bare[0]} has none: let the site fine-tune, or put "
        f"its head beside its adapter; label words need labelled samples that name the classes"
    )


_CHECKS: Mapping[Need, Callable[[Sites], str | None]] = {
    "LoRA": _lora,
    "equal ranks": _equal_ranks,
    "shared A": _shared_factor,
    "labels": _labels,
    "head": _head,
}
