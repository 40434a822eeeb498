"""What `layerweld compare --tune` tries: a short list of settings per method, declared in advance.

The first entry of every list is no change, i.e. the published default. What follows is ordered by
how often papers tune it: the overall scale first, then the share of entries kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from layerweld.settings.methods import Method
from layerweld.settings.run import RunSettings, Scalar, read_run_settings

Candidate = Mapping[str, Scalar]


def _one(key: str, *values: float) -> tuple[Candidate, ...]:
    return tuple({key: value} for value in values)


_PLAIN: tuple[Candidate, ...] = ({},)
GRIDS: Mapping[str, tuple[Candidate, ...]] = MappingProxyType(
    {
        "merge": (*_PLAIN, *_one("ridge", 0.1, 0.001, 0.3), *_one("shrinkage", 0.9, 0.8)),
        "task-arithmetic": (*_PLAIN, *_one("scaling", 0.2, 0.5, 0.15, 0.7, 1.0)),
        "adamerging": (*_PLAIN, *_one("start", 0.2, 0.5), *_one("learning-rate", 0.01)),
        "prodistill": (*_PLAIN, *_one("learning-rate", 0.1, 0.001), *_one("start", 0.2, 0.5)),
        "ties": (*_PLAIN, *_one("scaling", 0.6, 1.5, 0.4), *_one("density", 0.1, 0.5)),
        "dare": (*_PLAIN, *_one("scaling", 0.2, 0.5, 0.15), *_one("drop", 0.5, 0.2)),
        "dare-ties": (*_PLAIN, *_one("scaling", 0.6, 1.5, 0.4), *_one("drop", 0.5, 0.2)),
        "consensus": (*_PLAIN, *_one("scaling", 0.2, 0.5, 0.7), *_one("mask-scale", 0.2, 0.6)),
        "localize-and-stitch": (
            *_PLAIN, *_one("density", 0.1, 0.2, 0.01), *_one("scaling", 0.6, 1.5),
        ),
        "pcb": (*_PLAIN, *_one("density", 0.1, 0.2), *_one("scaling", 0.8, 1.6, 2.0)),
        "tsv": (*_PLAIN, *_one("scaling", 0.6, 1.5, 0.4, 0.8, 1.2)),
        "iso-c": (*_PLAIN, *_one("scaling", 0.6, 1.5, 0.4, 0.8, 1.2)),
        "iso-cts": (*_PLAIN, *_one("scaling", 0.6, 1.5, 0.4), *_one("common", 0.6, 0.9)),
        "knots-ties": (*_PLAIN, *_one("scaling", 0.4, 1.0, 1.5), *_one("density", 0.1, 0.5)),
        "knots-dare-ties": (*_PLAIN, *_one("scaling", 0.4, 1.0, 1.5), *_one("drop", 0.5, 0.9)),
        "core-space": (*_PLAIN, *_one("scaling", 0.6, 1.5, 0.4, 0.8, 1.2)),
        "wudi": (*_PLAIN, *_one("ridge", 0.1, 0.001, 0.03, 0.003, 0.0003)),
        "dc-merge": (*_PLAIN, *_one("scaling", 0.6, 1.5, 0.4), *_one("density", 0.01, 0.1)),
        "opcm": (*_PLAIN, *_one("threshold", 0.2, 0.8, 0.35, 0.65, 0.9)),
    }
)  # fmt: skip
"""By the name of a settings table. A method without an entry has nothing to tune."""


def candidates(method: Method, budget: int) -> Sequence[Candidate]:
    """At most ``budget`` candidates of one method, the published default first."""
    return GRIDS.get(method.table, _PLAIN)[:budget]


def with_candidate(settings: RunSettings, number: int) -> RunSettings:
    """Every table with its candidate of that number; tables with fewer are left as they are."""
    changed = {
        f"{table}.{key}": value
        for table, grid in GRIDS.items()
        if number < len(grid)
        for key, value in grid[number].items()
    }
    return read_run_settings({**settings.flat(), **changed})
