"""Labelled tasks out of installed packages: disjoint, balanced, deterministic splits of them.

The demo's six sites, and the sites of the benchmarks. None of their rows is part of this project.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from client.data.samples import Rows, make_rows
from client.package_files import user_cache
from client.package_images import IMAGE_READERS, PackageImage
from client.package_texts import DEMO_READERS, TEXT_READERS, PackageText
from layerweld.errors import DataError
from layerweld.runtime.disk import writing

Split = Literal["train", "test"]
DEMO_SITES: tuple[str, ...] = tuple(DEMO_READERS)
TASKS: tuple[str, ...] = (*TEXT_READERS, *IMAGE_READERS)

_SHORTEST_TEXT = 8  # characters; what is left of some tweets without their links is less
_TEST_SHARE = 3  # every third group is held out


class _Row(NamedTuple):
    """What splits are made of; ``place`` is that of the example in its reader's order."""

    place: int
    name: str
    group: str


def package_rows(task: str, split: Split, samples: int, seed: int) -> Rows:
    """Rows of one of :data:`TASKS`, classes as balanced as the data allow.

    An example (or all texts about one film) is in the training or in the test split whatever the
    seed is; no text occurs twice. Images are written to the user's cache folder once.

    Args:
        task: one of :data:`TASKS`.
        split: rows to train and calibrate on, or held-out rows.
        samples: rows wanted; 0, or more than there are, gives all of the split.
        seed: of the draw and of the order; the same seed gives the same rows everywhere.

    Raises:
        DataError: there is no such task, or its package is not installed.
    """
    if task in TEXT_READERS:
        texts = _distinct(task)
        rows = [_Row(i, e.name, e.group) for i, e in enumerate(texts)]
        chosen = _chosen(rows, split, samples, seed)
        inputs: Sequence[str] | Sequence[Path] = [texts[row.place].text for row in chosen]
    elif task in IMAGE_READERS:
        images = _images(task)
        rows = [_Row(i, e.name, e.group) for i, e in enumerate(images)]
        chosen = _chosen(rows, split, samples, seed)
        inputs = [_image_file(task, row.place, images[row.place]) for row in chosen]
    else:
        raise DataError(f"no task {task!r} comes out of a package; there are {', '.join(TASKS)}")
    return make_rows(inputs, [row.name for row in chosen], {row.name for row in rows})


def _chosen(rows: Iterable[_Row], split: Split, samples: int, seed: int) -> list[_Row]:
    pool = [row for row in rows if _is_held_out(row.group) == (split == "test")]
    return _balanced(pool, samples or len(pool), random.Random(seed))


def _is_held_out(group: str) -> bool:
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % _TEST_SHARE == 0


def _balanced(pool: Iterable[_Row], samples: int, order: random.Random) -> list[_Row]:
    """Water-filling: rare classes give all they have, frequent ones share the rest evenly."""
    by_class: dict[str, list[_Row]] = defaultdict(list)
    for row in pool:
        by_class[row.name].append(row)
    chosen: list[_Row] = []
    rarest_first = sorted(by_class, key=lambda name: (len(by_class[name]), name))
    for classes_before, name in enumerate(rarest_first):
        share = (samples - len(chosen)) // (len(rarest_first) - classes_before)
        members = by_class[name]
        chosen += order.sample(members, min(share, len(members)))
    order.shuffle(chosen)
    return chosen


@cache  # the two splits of a task are read one after the other, by the same process
def _distinct(task: str) -> tuple[PackageText, ...]:
    first: dict[str, PackageText] = {}
    for example in TEXT_READERS[task]():
        if len(example.text) >= _SHORTEST_TEXT:
            first.setdefault(example.text.lower(), example)
    return tuple(first.values())


@cache
def _images(task: str) -> tuple[PackageImage, ...]:
    return tuple(IMAGE_READERS[task]())


def _image_file(task: str, place: int, image: PackageImage) -> Path:
    """The image as a PNG file, written when it is first wanted."""
    file = user_cache() / "images" / task / f"{place:06d}.png"
    if not file.exists():
        drawn = image.draw().convert("RGB")
        with writing(file) as partial:
            drawn.save(partial, format="PNG")
    return file
