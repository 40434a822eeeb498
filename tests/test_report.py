"""The report and the tables say what the results say, to whoever opens them, without a network."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from rich.console import Console

from layerweld.report.results import Score
from layerweld.report.run.conclusion import conclude_run, sampling_caveat
from layerweld.report.run.page import render_report, write_report
from layerweld.report.run.tables import site_accuracy_table, write_accuracy_csv
from layerweld.report.scores import best_at, compared_sites, half_width, summaries
from layerweld.report.wording import group_label, number_text, time_text
from tests.made_up_results import (
    ALONE,
    HOSTILE,
    SITES,
    made_up_results,
    with_lost_sites,
    without_scores,
)


def test_normalised_mean_and_worst_site_are_the_hand_computed_ones() -> None:
    results = made_up_results(com={"dakar": 0.40, "boston": 0.80})
    com = summaries(results)["com"]
    # 0.855/0.9, 0.8/0.8, 0.95/1, 0.4/0.5, 0.76/0.8, 0.855/0.9
    assert com.mean_normalised == pytest.approx((0.95 + 1 + 0.95 + 0.8 + 0.95 + 0.95) / 6)
    assert com.mean == pytest.approx((0.855 + 0.8 + 0.95 + 0.4 + 0.76 + 0.855) / 6)
    assert com.worst == ("dakar", pytest.approx(0.8))  # type: ignore[comparison-overlap]
    assert best_at(results, "dakar") == {"regmean++"}
    assert best_at(results, "boston") == {"com"}


def test_half_width_is_that_of_the_wilson_interval_and_never_zero() -> None:
    # p = 81/263, n = 263: Newcombe's (1998) example, 0.2553 to 0.3662
    assert 2 * half_width(Score(81 / 263, 263)) == pytest.approx(0.3662 - 0.2553, abs=1e-4)
    assert half_width(Score(1.0, 50)) > 0.03


def test_a_mean_is_taken_only_where_every_method_has_a_score() -> None:
    results = made_up_results()
    com = results.methods[-1]
    fewer = replace(com, scores={s: v for s, v in com.scores.items() if s != "boston"})
    results = replace(results, methods=(*results.methods[:-1], fewer))
    assert "boston" not in compared_sites(results)
    assert "Means leave out boston" in " ".join(render_report(results).split())
    assert summaries(results)["mean"].mean_normalised == pytest.approx(0.6)


def test_a_site_whose_own_model_scores_nothing_is_no_yardstick() -> None:
    results = made_up_results(individual={"dakar": 0.0})
    assert "dakar" not in compared_sites(results)
    assert summaries(results)["com"].mean_normalised == pytest.approx(0.95)


def test_the_verdict_names_the_best_merge_when_the_chosen_one_wins() -> None:
    assert conclude_run(made_up_results()).replace("\u00a0", " ") == (
        "Chain of Merges keeps 95.0 % of individual fine-tuning on average over six sites; "
        "it is the best of the five merges; RegMean++ follows with 85.0 %."
    )


def test_the_verdict_says_so_when_the_chosen_merge_loses() -> None:
    results = replace(made_up_results(), chosen="mean")
    said = conclude_run(results).replace("\u00a0", " ")
    assert "Mean keeps 60.0 %" in said
    assert "Chain of Merges is better here, with 95.0 %" in said
    assert "best of" not in said


def test_the_verdict_says_so_when_the_base_model_does_no_worse() -> None:
    results = made_up_results(com=dict(zip(SITES, (0.3,) * 6, strict=True)))
    assert "The base model alone does no worse" in conclude_run(results)


def test_a_tie_is_called_a_tie() -> None:
    same = {s: 0.85 * a for s, a in zip(SITES, ALONE, strict=True)}
    results = made_up_results(com=same)
    assert "RegMean++ does exactly as well" in conclude_run(results)


def test_a_gap_within_the_sampling_error_is_called_that() -> None:
    close = {s: 0.86 * a for s, a in zip(SITES, ALONE, strict=True)}
    assert "smaller than the sampling error" in sampling_caveat(made_up_results(com=close))
    assert "larger than the sampling error" in sampling_caveat(made_up_results(samples=100_000))


def test_without_scores_the_verdict_claims_nothing_and_the_report_says_how_to_evaluate() -> None:
    page = render_report(without_scores())
    assert "was not measured" in conclude_run(without_scores())
    assert "where every site has labelled" in page
    assert 'id="chart-accuracy"' not in page
    assert "held-out samples. They" not in page


def test_without_covariate_shift_the_report_says_how_to_measure_it() -> None:
    results = made_up_results(shift=False)
    page = render_report(results)
    assert "merge.covariate-shift = &#34;first&#34;" in page
    assert {"shift", "shift-methods"}.isdisjoint(_charts(page))
    assert {"shift", "shift-methods"} <= set(_charts(render_report(made_up_results())))


def test_without_groups_their_sections_are_left_out() -> None:
    plain = tuple(replace(m, groups=()) for m in made_up_results().methods)
    page = render_report(replace(made_up_results(), methods=plain))
    assert set(_charts(page)) == {"accuracy", "tokens"}
    assert 'id="solving"' not in page
    assert 'id="importance"' not in page
    assert "Gram matrices are not anonymous" not in page


def test_without_individual_scores_only_absolute_numbers_are_shown() -> None:
    rest = tuple(m for m in made_up_results().methods if m.name != "individual")
    results = replace(made_up_results(), methods=rest)
    assert "reaches an accuracy of" in conclude_run(results)
    assert 'class="normalised"' not in render_report(results)


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    file = tmp_path / "out" / "report.html"
    write_report(made_up_results(), file)
    page = _Page(file.read_text(encoding="utf-8"))
    assert not page.loads
    assert "link" not in page.tags
    assert "default-src 'none'" in page.policy
    own = "".join(text for text in page.scripts if len(text) < 1_000_000) + page.style
    assert not re.search(r"@import|url\(|//(cdn|fonts)", own)


def test_site_names_are_escaped_in_the_page_and_in_the_charts() -> None:
    text = render_report(made_up_results())
    page = _Page(text)
    assert "<img" not in text.replace(max(page.scripts, key=len), "")
    assert "img" not in page.tags
    assert HOSTILE in [row[0] for row in page.rows]
    charts = _charts(text)
    assert "&lt;img" in json.dumps(charts["bytes"])
    assert "<img" not in json.dumps(charts)


def test_the_accuracy_table_of_the_page_has_the_right_numbers() -> None:
    page = _Page(render_report(made_up_results(com={"dakar": 0.40})))
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 10}
    assert rows["amsterdam"][0] == "45.0 % 50.0 %"
    assert rows["amsterdam"][6:] == ["*85.5 % 95.0 %", "400", "4.9"]
    assert rows["dakar"][5:7] == ["*42.5 % 85.0 %", "40.0 % 80.0 %"]
    assert rows["Mean"][6] == "*76.3 % 92.5 %"
    assert rows["Worst site, normalised"][5].startswith("*85.0 % ")
    assert rows["Worst site, normalised"][6] == "80.0 % dakar"


def test_every_chart_is_one_that_plotly_accepts_and_has_the_numbers() -> None:
    charts = _charts(render_report(made_up_results()))
    for chart in charts.values():
        go.Figure(json.loads(re.sub(r'"--[\w-]+"', '"#123456"', json.dumps(chart["figure"]))))
    bars = charts["bytes"]["figure"]["data"]
    assert [bar["y"][3] for bar in bars] == pytest.approx([4.0] * 6)
    residual = charts["residual"]["figure"]["data"]
    assert [line["name"] for line in residual] == [
        "query,key,value", "attention.output", "intermediate", "output",
    ]  # fmt: skip
    assert charts["importance"]["figure"]["data"][0]["z"][0][0] == pytest.approx(-1.807, abs=1e-3)


def test_importance_is_left_out_where_every_site_counts_the_same() -> None:
    com = made_up_results().methods[-1]
    groups = tuple(replace(g, importance=dict.fromkeys(SITES, 1.0)) for g in com.groups)
    results = replace(
        made_up_results(), methods=(*made_up_results().methods[:-1], replace(com, groups=groups))
    )
    assert "importance" not in _charts(render_report(results))


def test_numbers_that_are_not_finite_do_not_break_the_charts() -> None:
    com = made_up_results().methods[-1]
    groups = (replace(com.groups[0], condition=float("inf")), *com.groups[1:])
    results = replace(
        made_up_results(), methods=(*made_up_results().methods[:-1], replace(com, groups=groups))
    )
    assert len(_charts(render_report(results))["condition"]["figure"]["data"][0]["x"]) == 5


def test_influence_is_drawn_where_it_was_measured_and_names_outliers() -> None:
    results = made_up_results()
    assert "influence" not in _charts(render_report(results))
    com = results.methods[-1]
    groups = tuple(replace(g, influence=dict.fromkeys(SITES, 0.2)) for g in com.groups)
    flagged = replace(com, groups=groups, outliers={SITES[0]: (groups[0].name,)})
    page = render_report(replace(results, methods=(*results.methods[:-1], flagged)))
    cells, rings = _charts(page)["influence"]["figure"]["data"]
    assert cells["z"] == [[0.2] * 24] * len(SITES)
    assert (rings["x"], rings["y"]) == ([0], [0])
    assert f"{SITES[0]} (1)" in page
    opposed = replace(flagged, opposed={SITES[1]: (groups[0].name, groups[1].name)})
    page = render_report(replace(results, methods=(*results.methods[:-1], opposed)))
    assert f"pull in this many groups: {SITES[1]} (2)" in page


def test_lost_sites_are_named_with_round_cause_policy_and_the_groups_that_lack_them() -> None:
    page = _without_markup(render_report(with_lost_sites()))
    assert "2 sites failed on the way, and the run went on, since lost-site = continue" in page
    assert (
        "boston Chain of Merges 10 15 of 24: L2 · attention.output to L5 · output full disk" in page
    )
    assert "boston Mean 1 all: merged in one round full disk" in page
    assert "dakar none – none: lost after the merges were made never answered" in page
    charts = _charts(render_report(with_lost_sites()))
    assert charts["cohort"]["figure"]["data"][0]["z"] == [
        [1] * 9 + [0] * 15 if site == "boston" else [1] * 24 for site in SITES
    ]


def test_nothing_is_said_of_lost_sites_where_none_was_lost() -> None:
    page = render_report(made_up_results())
    assert "Lost sites" not in page
    assert "cohort" not in _charts(page)


def test_labels_are_short_whatever_the_model_calls_its_layers() -> None:
    group = made_up_results().methods[-1].groups[0]
    assert group_label(group) == "L0 · query,key,value"
    llama = replace(
        group, name="layers.12.self_attn.{q_proj,k_proj,v_proj}",
        layers=tuple(f"layers.12.self_attn.{n}_proj" for n in "qkv"),
    )  # fmt: skip
    assert group_label(llama) == "L12 · q,k,v"
    assert group_label(replace(group, name="pooler.dense", layers=("dense",))) == "pooler"


def test_numbers_are_written_as_people_write_them() -> None:
    assert [number_text(x) for x in (0.0, 0.01234, 12345.0, 2.5e9)] == [
        "0", "0.0123", "12,345", "2.5·10⁹",
    ]  # fmt: skip
    assert time_text(192.4).replace("\u00a0", " ") == "3 min 12 s"


def test_the_terminal_table_has_the_numbers_of_the_report() -> None:
    text, bold = _rendered(site_accuracy_table(made_up_results(com={"dakar": 0.40})))
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines() if line.strip()}
    assert _numbers(rows["amsterdam"]) == [45.0, 90.0, 54.0, 63.0, 72.0, 76.5, 85.5]
    assert _numbers(rows["normalised"]) == [50.0, 100.0, 60.0, 70.0, 80.0, 85.0, 92.5]
    assert _numbers(rows["worst site"])[-1] == 80.0
    assert bold == ["85.5", "76.0", "95.0", "42.5", "76.0", "85.5", "76.3", "92.5", "85.0"]


def test_a_site_cannot_steer_the_terminal() -> None:
    results = made_up_results()
    sites = (replace(results.sites[0], name="[red]x\x1b[2J"), *results.sites[1:])
    renamed = {"amsterdam": "[red]x\x1b[2J"}
    methods = tuple(
        replace(m, scores={renamed.get(s, s): v for s, v in m.scores.items()})
        for m in results.methods
    )
    text, _ = _rendered(site_accuracy_table(replace(results, sites=sites, methods=methods)))
    assert r"[red]x\x1b[2J" in text


def test_the_page_has_a_line_per_group() -> None:
    rows = _Page(render_report(made_up_results())).rows
    assert sum(row[0].startswith("L3 ·") for row in rows if row) == 4
    first = next(row for row in rows if row and row[0].startswith("L0 · query"))
    assert first[1:] == ["1", "128", "6,000", "0.0100", "1,000", "0.200", "0", "6.0 MB"]


def test_the_csv_has_full_precision_and_no_formulas(tmp_path: Path) -> None:
    results = made_up_results()
    com = results.methods[-1]
    evil = replace(com, scores={"=1+1": Score(1 / 3, 30)} | dict(com.scores))
    write_accuracy_csv(replace(results, methods=(*results.methods[:-1], evil)), tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[-7]["site"] == "'=1+1"
    assert float(rows[-7]["accuracy"]) == 1 / 3
    assert rows[-7]["normalised"] == ""
    assert float(rows[-6]["normalised"]) == pytest.approx(0.95)


def _without_markup(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def _charts(page: str) -> dict[str, dict[str, Any]]:
    text = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    assert text
    charts = json.loads(text.group(1))["charts"]
    return {c["key"]: {"figure": {"data": c["data"], "layout": c["layout"]}} for c in charts}


def _rendered(table: object) -> tuple[str, list[str]]:
    """The table as text, and the numbers in it that are bold, in reading order."""
    stream = StringIO()
    console = Console(file=stream, width=200, force_terminal=True, color_system="standard",
                      record=True)  # fmt: skip
    console.print(table)
    bold = re.findall(r"\x1b\[1m *([\d.]+)", stream.getvalue())
    return console.export_text(), bold


def _numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r" ([\d.]+)", line)]


class _Page(HTMLParser):
    """What a test asks of the page: tags, table rows, scripts, styles and whatever is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.style = ""
        self.policy = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [
            v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action")
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("*" if "best" in (dict(attrs).get("class") or "").split() else "")
        if tag == "meta" and dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"] or ""
        if tag in ("th", "td", "script", "style"):
            self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            if tag in ("th", "td"):
                self.rows[-1][-1] = " ".join(self.rows[-1][-1].split()).replace("* ", "*")
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("th", "td"):
            self.rows[-1][-1] += data
        elif self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.style += data
