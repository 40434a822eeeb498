"""The text tasks of the benchmarks: the demo's, and two out of Debian packages."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator
from functools import reduce

from experiments.tasks.debian import debian_file
from layerweld.demo import texts
from layerweld.demo.texts import LabelledText

_KINDS = {
    "04": "act", "05": "animal", "06": "artifact", "08": "body", "09": "cognition",
    "10": "communication", "13": "food", "15": "location", "18": "person", "20": "plant",
    "26": "state", "27": "substance",
}  # fmt: skip
"""WordNet's lexicographer files that are classes here, by number."""
_RAREST_SUBJECT = 250  # entries; rarer subjects are no class
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_DICTIONARIES = "/usr/share/dictd/foldoc"


def _gloss() -> Iterator[LabelledText]:
    """What kind of thing a dictionary's definition defines."""
    file = debian_file("wordnet-base", "/usr/share/wordnet/data.noun")
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        fields, _, definition = line.partition(" | ")
        kind = "" if line.startswith(" ") else _KINDS.get(fields.split()[1], "")
        text = definition.split('; "')[0].strip()
        if kind and len(text.split()) >= 4:
            yield LabelledText(text, kind, group=text.lower())


def _foldoc() -> Iterator[LabelledText]:
    """Which subject a computing dictionary files an entry under."""
    entries = list(_foldoc_entries())
    sizes = Counter(name for _, name in entries)
    for text, name in entries:
        if sizes[name] >= _RAREST_SUBJECT:
            yield LabelledText(text, name, group=text.lower())


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


def _number(digits: str) -> int:
    """A number as dictd's index writes it: base 64, most significant digit first."""
    return reduce(lambda total, digit: 64 * total + _DIGITS.index(digit), digits, 0)


READERS = {**texts.READERS, "gloss": _gloss, "foldoc": _foldoc}
"""By the name of the task."""
