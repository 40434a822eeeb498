"""Disjoint, balanced, deterministic splits of a task's examples."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol, TypeVar

Split = Literal["data", "held-out"]
"""As the keys of a site that name their files: to train and calibrate on, and to evaluate on."""

SAMPLES: Mapping[Split, int] = {"data": 1500, "held-out": 250}
"""Of each site of the demo and of the benchmarks."""

_HELD_OUT_SHARE = 3  # every third group is held out


class Example(Protocol):
    """One text or image of a task."""

    @property
    def label(self) -> str:
        """Its class."""

    @property
    def group(self) -> str:
        """What must not straddle the splits."""


E = TypeVar("E", bound=Example)


def drawn(examples: Iterable[E], split: Split, samples: int, seed: int) -> list[E]:
    """Examples of one split, classes as balanced as the data allow.

    A group is in the same split whatever the seed is.

    Args:
        examples: of the task.
        split: to draw from.
        samples: wanted; 0, or more than there are, gives all of the split.
        seed: of the draw and of the order; the same seed gives the same samples everywhere.
    """
    pool = [one for one in examples if _is_held_out(one.group) == (split == "held-out")]
    return _balanced(pool, samples or len(pool), random.Random(seed))


def _is_held_out(group: str) -> bool:
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % _HELD_OUT_SHARE == 0


def _balanced(pool: Iterable[E], samples: int, order: random.Random) -> list[E]:
    """Water-filling: rare classes give all they have, frequent ones share the rest evenly."""
    by_class: dict[str, list[E]] = defaultdict(list)
    for one in pool:
        by_class[one.label].append(one)
    chosen: list[E] = []
    rarest_first = sorted(by_class, key=lambda label: (len(by_class[label]), label))
    for classes_before, label in enumerate(rarest_first):
        share = (samples - len(chosen)) // (len(rarest_first) - classes_before)
        members = by_class[label]
        chosen += order.sample(members, min(share, len(members)))
    order.shuffle(chosen)
    return chosen
