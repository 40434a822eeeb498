"""Is one site many times as large as the others? Numbers in, names out: no tensors, no files."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median, median_low

from layerweld.errors import OutOfProportionError


def out_of_proportion(sizes: Mapping[str, float], most: float) -> dict[str, float]:
    """Sites that are more than ``most`` times the median of the others, and how many times.

    A size of 0 says nothing and is no measure for anybody: a site that was never trained, or that
    did not change these layers. Where no other site has a size, none is out of proportion.

    Args:
        sizes: by site, ≥ 0.
        most: at least 1.
    """
    found = {}
    for site, size in sorted(sizes.items()):
        others = [other for name, other in sizes.items() if name != site and other > 0]
        if others and size > most * median(others):
            found[site] = size / median(others)
    return found


def refuse_out_of_proportion(sizes: Mapping[str, float], most: float, what: str) -> None:
    """Raise an error that names the sites that are more than ``most`` times the others' median.

    Args:
        sizes: by site, ≥ 0.
        most: of the run, ``merge.max-size``.
        what: has these sizes, for the message: ``its update of attention.query``.

    Raises:
        OutOfProportionError: as said.
    """
    found = out_of_proportion(sizes, most)
    if found:
        raise OutOfProportionError({site: _reason(what, n, most) for site, n in found.items()})


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


def _reason(what: str, times: float, most: float) -> str:
    return (
        f"{what} is {times:,.0f} times as large as the median of the other sites', and "
        f"merge.max-size is {most:g}; look at the site's adapter (is its lora_alpha right?), or "
        f"raise merge.max-size if it is meant to be"
    )
