"""Text from outside, wherever it is shown or kept: short, plain, and nothing but text."""

import csv
import io
import json
import logging
import re
from _io import StringIO
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from client.handlers.reply_log import note_reply
from layerweld.errors import ConfigError, LostSiteError
from layerweld.merging.registry import METHODS
from layerweld.report.comparison.files import write_comparison
from layerweld.report.comparison.results import Comparison, Entry, Refusal
from layerweld.report.comparison.tables import (
    closing_lines,
    method_accuracy_table,
    methods_by_site_table,
)
from layerweld.report.model_card import write_model_card
from layerweld.report.results import MethodResult, RunResults, Score, SiteSummary
from layerweld.report.run.page import render_report
from layerweld.report.run.tables import site_accuracy_table, write_accuracy_csv
from layerweld.runtime import terminal
from layerweld.runtime.incidents import record_incident
from layerweld.runtime.progress import listening, report_progress
from layerweld.runtime.run_state import Recorder, read_state, recording
from layerweld.runtime.terminal import showing_progress
from layerweld.settings.run import RunSettings, read_run_settings
from layerweld.settings.sites import SiteEntry
from layerweld.untrusted.text import csv_cell, markdown, markdown_code, shown, shown_lines
from strategies.notices import notice, tell
from tests.hostile_texts import HOSTILE, hidden_in, hostile_texts
from tests.made_up_results import made_up_results

TEXTS = hostile_texts(400)
SHORT = [text[:200] for text in TEXTS[:120]]  # Rich takes its time for cells of many lines


@pytest.mark.parametrize("make", [shown, markdown, markdown_code, csv_cell])
def test_what_is_shown_is_one_printable_line_of_bounded_length(make: Any) -> None:
    for text in TEXTS:
        found = make(text)
        assert not hidden_in(found), repr(text)
        assert len(found) < 6000
        found.encode()


def test_plain_text_is_shown_as_it_is() -> None:
    for text in ("hospital-a", "Gräfin 漢字 😀", "a_b c", "±\u00a05 %", "x" * 300):
        assert shown(text) == shown_lines(text) == text
    assert shown("x" * 301) == "x" * 300 + "… (cut, 301 characters)"
    assert shown_lines("a\n\tb\x1b") == "a\n\tb\\x1b"


def test_no_cell_is_a_formula_and_numbers_stay_numbers() -> None:
    for text in TEXTS:
        assert not csv_cell(text).lstrip().startswith(tuple("=+-@＝＋－＠"))  # type: ignore[attr-defined]
    assert csv_cell(-0.5) == -0.5
    assert csv_cell(None) is None


def test_nothing_in_markdown_is_a_link_a_picture_a_tag_or_a_cell() -> None:
    for text in TEXTS:
        found = re.sub(r"\\[\\`*\[\]|:+=#-]", "", markdown(text))  # what is escaped is a character
        assert not re.search(r"[<>\[\]`|]|\w://", found), text
        assert not re.search(r"[<>`|]", markdown_code(text))


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """A terminal that takes control sequences, and what arrived there."""
    written = io.StringIO()
    for name in ("console", "errors"):
        shows = Console(file=written, force_terminal=True, width=200, markup=False, emoji=False)
        for hook in getattr(terminal, name)._render_hooks:
            shows.push_render_hook(hook)
        monkeypatch.setattr(terminal, name, shows)
    return written


_OURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")  # colours and cursor, as Rich writes them


def assert_plain(written: StringIO, foreign: str = "\x1b[2J") -> None:
    text = written.getvalue()
    assert foreign not in text
    assert not hidden_in(_OURS.sub("", text), but="\n\t")
    assert "\x1b]" not in text


def test_the_terminal_shows_text_and_obeys_none(screen: StringIO) -> None:
    for text in SHORT:
        terminal.console.print(text)
        terminal.errors.print(f"layerweld: {text}", style="red", soft_wrap=True)
        table = Table(title=text)
        table.add_column(text)
        table.add_row(text)
        terminal.console.print(table)
    assert_plain(screen)
    assert "[link=http://collector.example]here" in screen.getvalue()


def test_progress_shows_text_and_obeys_none(screen: StringIO) -> None:
    with showing_progress():
        for text in SHORT[:60]:
            report_progress(text or "x", 0, 2)
            report_progress(text or "x", 0, 0)
    assert_plain(screen)


def test_progress_and_flowers_log_are_lines_of_bounded_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr("strategies.notices.log", lambda _level, text: seen.append(text))
    with listening(lambda what, _done, _total: seen.append(what)):
        for text in TEXTS:
            notice(text)
            tell(text)
            report_progress(text, 1, 2)
    assert len(seen) == 4 * len(TEXTS)
    assert not any(hidden_in(text) or len(text) > 21_000 for text in seen)
    assert logging.WARNING > logging.INFO


def test_the_state_of_a_run_holds_text_of_bounded_length(tmp_path: Path) -> None:
    def run() -> None:
        with recording(tmp_path) as recorder:
            recorder.waiting_for = lambda: {f"site {i}": text for i, text in enumerate(TEXTS)}
            for text in HOSTILE:
                report_progress(text, 0, 0)
            report_progress(TEXTS[3], 1, 2)
            raise LostSiteError("\n".join(TEXTS))

    with pytest.raises(LostSiteError):
        run()
    file = tmp_path / "state.json"
    assert file.stat().st_size < 500_000
    assert not hidden_in(file.read_text(), but="\n")
    state = read_state(tmp_path)
    assert state
    kept = [state.what, state.cause, *state.notes, *state.waiting.values()]
    assert not any(map(hidden_in, kept))
    assert isinstance(Recorder(tmp_path), Recorder)


def test_a_line_of_the_sites_log_is_one_line_and_begins_with_its_own_time(tmp_path: Path) -> None:
    for text in TEXTS:
        note_reply(tmp_path, text, f"failed, {text}", 0.1)
    lines = [
        line
        for file in tmp_path.glob("replies*.log")
        for line in file.read_text().split("\n")
        if line
    ]
    assert len(lines) == len(TEXTS)
    assert all(re.match(r"20\d\d-\d\d-\d\dT[\d:]+\+00:00  ", line) for line in lines)
    assert not any(map(hidden_in, lines))


def test_an_incident_in_full_steers_nobodys_terminal(tmp_path: Path) -> None:
    for text in TEXTS:
        incident = record_incident(ValueError(text), tmp_path)
        kept = (tmp_path / f"{incident.number}.log").read_text()
        assert not hidden_in(kept, but="\n\t")
        assert len(kept) < 1_100_000


def hostile_results(text: str, other: str) -> RunResults:
    """A run of which everything that can be a text is this one, in places where it may be long."""
    plain = made_up_results()
    to = {plain.sites[0].name: text, plain.sites[-1].name: other}

    def renamed(by_site: Mapping[str, Score]) -> dict[Any, Any]:
        return {to.get(site, site): value for site, value in by_site.items()}

    def of_group(group: Any) -> Any:
        by_site = ("tokens", "importance", "bytes_up", "covariate_shift")
        changed = {name: renamed(getattr(group, name)) for name in by_site}
        layers = tuple(f"{text}.{layer}" for layer in group.layers)
        return replace(group, name=f"{group.name}.{text}", layers=layers, **changed)

    methods = tuple(
        replace(
            method,
            label=f"{method.label}{text[:60]}",
            scores=renamed(method.scores),
            groups=tuple(map(of_group, method.groups)),
            metrics={text: 1.0},
            lost={text: 1},
        )
        for method in plain.methods
    )
    return replace(
        plain,
        name=text,
        base=text,
        sites=tuple(SiteSummary(to.get(s.name, s.name), 10, 9, "lora", 4) for s in plain.sites),
        methods=methods,
        lost={text: other, other: text},
        settings={"name": text, "merge.anchor": text},
        versions={text: text},
        prefix=text,
        task=text,
    )


class Elements(HTMLParser):
    """Tags and their attributes, and what stands in scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.events: list[Any] = []
        self.links: list[Any] = []

    def handle_starttag(self, tag: Any, attributes: Any) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attributes:
            if name.startswith("on"):
                self.events.append(name)
            if name in ("src", "href"):
                self.links.append(value)


def read_page(page: str) -> tuple[str, Elements]:
    text = re.sub(r"<script>/\*\*\n.*?</script>", "", page, count=1, flags=re.DOTALL)  # Plotly's
    found = Elements()
    found.feed(text)
    return text, found


PLAIN_PAGE = read_page(render_report(hostile_results("site", "other")))[1]


@pytest.mark.parametrize("number", range(0, len(HOSTILE), 2))
def test_a_page_is_the_same_page_whatever_sites_call_themselves(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, other = HOSTILE[number] or "x", HOSTILE[number + 1 if number + 1 < len(HOSTILE) else 0]
    monkeypatch.setattr("layerweld.report.page.render.get_plotlyjs", lambda: "/**\n* plotly\n")
    page = render_report(hostile_results(text, other or "y"))
    html, found = read_page(page)
    assert found.tags == PLAIN_PAGE.tags
    assert not found.events
    assert not found.links
    assert not hidden_in(page, but="\n\t")
    assert len(html) < 5_000_000
    script = re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)
    assert script
    charts = script[1]
    drawn = [chart | {"title": "", "reading": ""} for chart in json.loads(charts)["charts"]]
    values = json.dumps(drawn, ensure_ascii=False)
    assert not re.search(r"<(?!br>|/?extra>|/?b>)", values)


def test_tables_and_csv_files_are_well_formed_whatever_sites_call_themselves(
    tmp_path: Path,
) -> None:
    for text, other in zip(HOSTILE[::2], HOSTILE[1::2], strict=False):
        results = hostile_results(text[:99] or "x", (other[:99] or "y")[::-1])
        write_accuracy_csv(results, tmp_path / "accuracy.csv")
        content = (tmp_path / "accuracy.csv").read_text()
        rows = list(csv.reader(io.StringIO(content), strict=True))
        assert {len(row) for row in rows} == {6}
        assert not any(row[0].lstrip().startswith(tuple("=+-@")) for row in rows)
        assert not hidden_in(content, but="\n\r")
        written = io.StringIO()
        small = Console(file=written, width=200, markup=True)
        small.print(site_accuracy_table(results))
        assert not hidden_in(written.getvalue(), but="\n")


def test_a_comparison_is_well_formed_whatever_sites_call_themselves(
    tmp_path: Path, screen: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerweld.report.page.render.get_plotlyjs", lambda: "")
    for text in (text[:99] for text in HOSTILE):
        scores = {text: Score(0.5, 10), "plain": Score(0.7, 10)}
        entries = tuple(
            Entry(0, MethodResult(name, f"{name}{text}", 1, 1.0, 1, 1, scores), None, {text: 0.1})
            for name in ("individual", "com", "mean")
        )
        refused = (Refusal(text, text, text),)
        compared = Comparison(text, text, (), (0,), 1, entries, refused, {text: text})
        for table in (method_accuracy_table(compared), methods_by_site_table(compared)):
            terminal.console.print(table)
        for line in closing_lines(compared):
            terminal.console.print(line)
        write_comparison(compared, tmp_path)
        for name in ("methods.csv", "sites.csv"):
            content = (tmp_path / name).read_text()
            rows = list(csv.reader(io.StringIO(content), strict=True))
            assert len({len(row) for row in rows}) == 1
            cells = [cell for row in rows for cell in row]
            assert not any(c.lstrip().startswith(tuple("=+@")) for c in cells)
            assert not hidden_in(content, but="\n\r")
        page = (tmp_path / "comparison.md").read_text()
        assert not hidden_in(page, but="\n")
        tables = [line for line in page.split("\n") if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables[:5]} == {11}
        json.loads((tmp_path / "comparison.json").read_text())
        assert not hidden_in((tmp_path / "comparison.html").read_text(), but="\n\t")
    assert_plain(screen)


def _results_named(text: str) -> RunResults:
    """A run in which everything that somebody else may name has this name."""
    results = made_up_results()
    *others, com = results.methods
    group = replace(com.groups[0], name=text, lost=(text,))
    com = replace(
        com, label=text or "x", scores={text: Score(0.5, 10)}, groups=(group, group), lost={text: 1}
    )
    sites = tuple(SiteSummary(name, 1, 1, "lora", 4) for name in (text, "plain"))
    settings = {f"merge.{text}": text, "merge.ridge": 0.01}
    return replace(
        results, base=text or "x", sites=sites, methods=(*others, com), form="model",
        settings=settings, prefix=text, task=text,
    )  # fmt: skip


def test_a_card_is_the_same_card_whatever_is_written_into_it(tmp_path: Path) -> None:
    headings = None
    for text in TEXTS[: len(HOSTILE) + 10]:
        write_model_card(tmp_path, _results_named(text), METHODS["com"])
        card = (tmp_path / "README.md").read_text()
        assert not hidden_in(card, but="\n")
        assert len(card) < 60_000
        parts = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL)
        assert parts
        front, body = parts.groups()
        about = yaml.safe_load(front)
        assert about.keys() == {"base_model", "library_name", "tags"}
        assert isinstance(about["base_model"], str)
        found = [line for line in body.split("\n") if line.startswith("#")]
        headings = headings or found
        assert [h.partition(" on ")[0] for h in found] == [h.partition(" on ")[0] for h in headings]
        example = re.search(r"```python\n(.*?)\n```", body, re.DOTALL)
        assert example
        code = example[1]
        compile(code, "card", "exec")
        assert len(code.split("\n")) == 3
        outside = re.sub(r"```.*?```|`[^`\n]*`|\\.", "", body, flags=re.DOTALL)
        assert not re.search(r"<(?=[a-zA-Z!/])|\]\(|\w://", outside)


def test_settings_and_names_of_sites_refuse_what_no_name_holds() -> None:
    for text in TEXTS:
        for key in ("name", "base", "output", "calibration.device", "finetune.precision"):
            try:
                settings = read_run_settings(RunSettings().flat() | {key: text})
            except ConfigError as error:
                refused = str(error)
                continue
            assert not hidden_in(str(settings.flat()[key]))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
            with pytest.raises(ValueError, match="name"):
                SiteEntry(name=text, data="x")
    assert len(refused) < 5000
