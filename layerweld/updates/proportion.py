"""Which sites are many times as large as the others. Numbers in, names out: no tensors."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import median_low

from layerweld.errors import RefusedReplyError


class OutOfProportionError(RefusedReplyError):
    """What some sites sent is many times as large as what the others sent.

    Args:
        reasons: by site.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{site}: {why}" for site, why in sorted(reasons.items())))
        self.reasons = dict(reasons)


@dataclass(frozen=True)
class Part:
    """How large one named part of what a site sent is.

    Attributes:
        norm: Frobenius.
        entries: how many numbers it is a norm over.
    """

    norm: float
    entries: int


def refuse_out_of_proportion(sizes: Mapping[str, float], most: float, what: str) -> None:
    """Raise an error that names the sites that are more than ``most`` times the others' median.

    A size of 0 is not compared: the site was never trained, or did not change these layers. If no
    other site has a size, none is out of proportion.

    Args:
        sizes: by site, ≥ 0.
        most: of the run, ``merge.max-size``.
        what: has these sizes, for the message: ``its update of attention.query``.

    Raises:
        OutOfProportionError: as said.
    """
    everybody = _Sizes(sizes.values())
    usual = {site: everybody.median_without(size) for site, size in sizes.items()}
    reasons = {
        site: _reason(what, size / usual[site], most)
        for site, size in sizes.items()
        if 0 < most * usual[site] < size
    }
    if reasons:
        raise OutOfProportionError(reasons)


def refuse_parts_out_of_proportion(
    sites: Mapping[str, Mapping[str, Part]], most: float, what: str
) -> None:
    """As :func:`refuse_out_of_proportion`, for what each site sent in many parts.

    A part is compared with the same part of the others, or with what a part of that many numbers
    usually comes to at the others where that is more: a part that only one site changed has a
    measure, too, and one that the others hardly changed is no reason to refuse anybody.

    Args:
        sites: parts by name, by site.
        most: of the run, ``merge.max-size``.
        what: the parts are of, for the message: ``its update``.

    Raises:
        OutOfProportionError: with the first such part of each site.
    """
    whole = {site: _root_mean_square(parts.values()) for site, parts in sites.items()}
    everybody = _Sizes(whole.values())
    names = sorted({name for parts in sites.values() for name in parts})
    same = {
        name: _Sizes(parts[name].norm for parts in sites.values() if name in parts)
        for name in names
    }
    reasons = {}
    for site, parts in sites.items():
        usual = everybody.median_without(whole[site])
        for name, part in sorted(parts.items()):
            alike = same[name].median_without(part.norm)
            measure = max(alike, usual * sqrt(part.entries))
            if 0 < most * measure < part.norm and site not in reasons:
                reasons[site] = _reason(f"{what} of {name!r}", part.norm / measure, most)
    if reasons:
        raise OutOfProportionError(reasons)


def capped_weights(masses: Mapping[str, float], most: float) -> dict[str, float]:
    """Factors in (0, 1] that leave no site more than ``most`` times the median site's mass.

    The lower of the two middle ones where their number is even: half of the sites together cannot
    move it. Sites within the bound are absent.

    Args:
        masses: what each site brings, ≥ 0.
        most: above 0.
    """
    limit = most * median_low(masses.values()) if masses else 0.0
    return {site: limit / mass for site, mass in sorted(masses.items()) if mass > limit > 0}


class _Sizes:
    """Sizes of all sites; those of 0 are left out."""

    def __init__(self, sizes: Iterable[float]) -> None:
        self._sorted = sorted(size for size in sizes if size > 0)

    def median_without(self, size: float) -> float:
        """The median of the others, for a site of this size; 0 where there are none."""
        others = len(self._sorted) - (size > 0)
        if not others:
            return 0.0
        own = bisect_left(self._sorted, size) if size > 0 else len(self._sorted)
        low, high = (k + (k >= own) for k in ((others - 1) // 2, others // 2))
        return (self._sorted[low] + self._sorted[high]) / 2


def _root_mean_square(parts: Iterable[Part]) -> float:
    squares = entries = 0.0
    for part in parts:
        squares, entries = squares + part.norm**2, entries + part.entries
    return sqrt(squares / entries) if entries else 0.0


def _reason(what: str, times: float, most: float) -> str:
    return (
        f"{what} is {times:,.0f} times as large as the median of the other sites', and "
        f"merge.max-size is {most:g}; check the site's adapter (is its lora_alpha right?) and "
        f"the others' (were they hardly trained?), or raise merge.max-size if this is intended"
    )
