"""One warm round of the chain must be readable at one sitting: what it runs through, and its walk.

.venv/bin/python -m tests.test_one_round      # every file of the round, most lines first
"""

import ast
import re
import sys
import tempfile
import threading
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType

import pytest

from tests.dying_server import after_keeping
from tests.tiny_sites import BERT_LAYERS, make_sites

ROOT = Path(__file__).parents[1]
PARTS = ("layerweld", "strategies", "server", "client")
ROUND = 3
MOST_FILES, MOST_LINES = 25, 300
"""Of the walk in docs/architecture.md: files, and lines of the functions that it stops at."""
MOST_FILES_RUN, MOST_LINES_RUN = 58, 2900
"""Of all that runs: files, and lines of the functions."""


class Way:
    """The functions of the project that are called between two moments, by file."""

    def __init__(self) -> None:
        self.functions: dict[str, dict[str, int]] = defaultdict(dict)

    def begin(self) -> None:
        frame: FrameType | None = sys._getframe()
        while frame and (frame := frame.f_back):
            if "strategies" in Path(frame.f_code.co_filename).parts:  # the loop over rounds
                self._seen(frame, "call", None)
        threading.setprofile(self._seen)
        sys.setprofile(self._seen)

    def end(self) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _seen(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        file = Path(code.co_filename)
        if event == "call" and file.is_relative_to(ROOT):
            inside = file.relative_to(ROOT)
            if inside.parts[0] in PARTS and "<" not in code.co_name:
                self.functions[str(inside)][code.co_qualname] = _length(code)

    @property
    def lines(self) -> dict[str, int]:
        """Of the functions that ran, by file."""
        return {file: sum(lengths.values()) for file, lengths in self.functions.items()}


def _length(code: CodeType) -> int:
    last = max(line for _start, _end, line in code.co_lines() if line is not None)
    return last - code.co_firstlineno + 1


def way_of_one_round(folder: Path) -> Way:
    """Round 3 of the chain over three tiny sites, from one kept round to the next."""
    way = Way()

    def at_its_ends(index: int) -> None:
        if index == ROUND - 1:
            way.begin()
        elif index == ROUND:
            way.end()

    sites = make_sites(folder / "sites", BERT_LAYERS)
    with pytest.MonkeyPatch.context() as patch, after_keeping(patch, at_its_ends):
        sites.run(folder / "out")
    return way


def stops() -> list[tuple[str, str]]:
    """Function and file of each stop of the walk."""
    text = (ROOT / "docs/architecture.md").read_text()
    walk = text.partition("## Follow one round")[2].partition("\n### ")[0]
    return re.findall(r"^\d+\. \[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", walk, re.MULTILINE)


def function_lines(file: str, name: str) -> int:
    """Length of a function or method with its signature, its docstring left out."""
    node: ast.AST = ast.parse((ROOT / file).read_text())
    for part in name.split("."):
        node = next(
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == part
        )
    assert isinstance(node, ast.FunctionDef)
    first = node.body[0]
    docstring = range(first.lineno, (first.end_lineno or 0) + 1) if ast.get_docstring(node) else ()
    return (node.end_lineno or 0) - node.lineno + 1 - len(docstring)


def printed(way: Way) -> None:
    lines = way.lines
    print(f"\n{len(lines)} files, {sum(lines.values())} lines of functions that run")
    for file in sorted(lines, key=lambda file: -lines[file]):
        print(f"{lines[file]:6} {len(way.functions[file]):4} {file}")


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    return way_of_one_round(tmp_path_factory.mktemp("round"))


def test_every_stop_of_the_walk_is_on_the_way_of_a_warm_round(way: Way) -> None:
    for name, file in stops():
        assert name in way.functions[file], f"{file}: {name} does not run"


def test_the_walk_is_read_in_one_sitting() -> None:
    assert len(stops()) == 20
    assert len({file for _name, file in stops()}) <= MOST_FILES
    assert sum(function_lines(file, name) for name, file in stops()) <= MOST_LINES


def test_a_warm_round_runs_through_few_lines(way: Way) -> None:
    printed(way)
    assert len(way.lines) <= MOST_FILES_RUN
    assert sum(way.lines.values()) <= MOST_LINES_RUN


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        printed(way_of_one_round(Path(temporary)))
