"""How much of the project one warm round of the chain runs through: it must be readable at once.

.venv/bin/python -m tests.test_one_round      # the files, most lines first
"""

import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.dying_server import after_keeping
from tests.tiny_sites import BERT_LAYERS, make_sites

ROOT = Path(__file__).parents[1]
PARTS = ("layerweld", "strategies", "server", "client")
ROUND = 3
MOST_FILES, MOST_LINES = 49, 6202


class Way:
    """The functions of the project that are called between two moments, by file."""

    def __init__(self) -> None:
        self.calls = Counter()

    def begin(self) -> None:
        threading.setprofile(self._seen)
        sys.setprofile(self._seen)

    def end(self) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _seen(self, frame: Any, event: Any, _argument: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(ROOT):
            inside = file.relative_to(ROOT)
            if inside.parts[0] in PARTS:
                self.calls[str(inside)] += 1

    @property
    def lines(self) -> dict[Any, Any]:
        """Of each whole file."""
        return {file: len((ROOT / file).read_text().splitlines()) for file in self.calls}


def way_of_one_round(folder: Path) -> Way:
    """Round 3 of the chain over three tiny sites, from one kept round to the next."""
    way = Way()

    def at_its_ends(index: Any) -> None:
        if index == ROUND - 1:
            way.begin()
        elif index == ROUND:
            way.end()

    sites = make_sites(folder / "sites", BERT_LAYERS)
    with pytest.MonkeyPatch.context() as patch, after_keeping(patch, at_its_ends):
        sites.play(folder / "out")
    return way


def printed(way: Way) -> None:
    rows = sorted(way.lines.items(), key=lambda row: -row[1])
    print(f"\n{len(rows)} files, {sum(way.lines.values())} lines, {way.calls.total()} calls")
    for file, lines in rows:
        print(f"{lines:6} {way.calls[file]:6} {file}")


def test_a_warm_round_is_read_in_one_sitting(tmp_path: Path) -> None:
    way = way_of_one_round(tmp_path)
    printed(way)
    assert len(way.calls) <= MOST_FILES
    assert sum(way.lines.values()) <= MOST_LINES


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        printed(way_of_one_round(Path(temporary)))
