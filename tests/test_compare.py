"""Methods side by side on tiny sites: one table, honest about what was left out and how chosen."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from layerweld.cli import main as cli
from layerweld.errors import ConfigError, InUseError
from layerweld.merging.registry import METHODS
from layerweld.report.comparison.conclusion import conclude_comparison
from layerweld.report.comparison.results import Comparison, Entry
from layerweld.report.comparison.spreads import Spread, over_seeds
from layerweld.report.comparison.tables import budget_text
from layerweld.report.results import MethodResult, Score
from layerweld.runtime.peak_memory import peak_resident
from layerweld.settings.comparison import ComparisonSettings, candidates, with_candidate
from layerweld.settings.methods import setting_named
from layerweld.settings.run import RunSettings, read_run_settings
from server.federation import Federation
from server.merged_model import MergedModel
from tests.tiny_sites import TinySites, make_labelled_sites, read_samples, write_samples

CHOSEN = "mean,com,dare,ffa-lora,opcm"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    return make_labelled_sites(tmp_path_factory.mktemp("sites"))


def run_file(sites: TinySites, folder: Path, **changes: Any) -> Path:
    tables = [
        f'base = "{sites.base}"\ncache = "{sites.folder / "cache"}"\n'
        "[calibration]\nmax-length = 12\nbatch-size = 8\nthreads = 1\n"
    ]
    for node in sites.nodes:
        entries = {key.replace("_", "-"): value for key, value in (node | changes).items()}
        tables.append("[[sites]]\n" + "".join(f'{k} = "{v}"\n' for k, v in entries.items() if v))
    file = folder / "run.toml"
    file.write_text("\n".join(tables))
    return file


def compare(file: Path, output: Path, *options: str) -> Result:
    return CliRunner().invoke(cli.app, ["compare", str(file), "--output", str(output), *options])


@pytest.fixture(scope="module")
def compared(sites: TinySites, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("compared")
    options = ("--methods", CHOSEN, "--seeds", "2", "--tune", "2")
    result = compare(run_file(sites, folder), folder / "out", *options)
    assert result.exit_code == 0, result.output
    return folder / "out", result.output


def read(file: Path) -> list[Any]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_method_is_a_row_or_is_left_out_with_its_reason(compared: tuple[Path, str]) -> None:
    folder, printed = compared
    names = [row["method"] for row in read(folder / "methods.csv")]
    assert names == ["base", "individual", "mean", "com", "dare", "opcm"]
    assert "FFA-LoRA (ffa-lora) was left out: it needs one frozen A" in printed.replace("\n", " ")
    assert "ffa-lora" in (folder / "comparison.html").read_text()


def test_the_end_names_the_best_merge_as_one_types_it(compared: tuple[Path, str]) -> None:
    folder, printed = compared
    rows = {r["method"]: float(r["normalised"]) for r in read(folder / "methods.csv")[2:]}
    best = max(rows, key=rows.__getitem__)
    assert f"({best}) keeps {100 * rows[best]:.1f}\u00a0%" in printed.replace("\n", " ")


def test_every_site_and_seed_has_a_line_and_individual_is_the_measure(
    compared: tuple[Path, str],
) -> None:
    rows = read(compared[0] / "sites.csv")
    assert len(rows) == 2 * 6 * 3
    alone = [row for row in rows if row["method"] == "individual"]
    assert {row["normalised"] for row in alone} == {"1.0"}
    assert {row["samples"] for row in rows} == {"18"}


def test_the_same_number_of_candidates_is_tried_for_all_and_named(
    compared: tuple[Path, str],
) -> None:
    rows = {row["method"]: row for row in read(compared[0] / "methods.csv")}
    assert {row["budget"] for row in rows.values()} == {"2"}
    grids = {
        name: {"default", *(f"{k}={v}" for k, v in candidates(METHODS[name], 2)[1].items())}
        for name in ("com", "dare", "opcm")
    }
    for name, possible in grids.items():
        chosen = rows[name]["tuned"]
        assert set(chosen.split("; ")) <= possible | {""}
    assert rows["mean"]["tuned"] == ""
    assert "best of at most 2 declared candidates" in (compared[0] / "comparison.md").read_text()


def test_costs_are_those_of_the_merge(compared: tuple[Path, str]) -> None:
    rows = {row["method"]: row for row in read(compared[0] / "methods.csv")}
    assert rows["mean"]["rounds"] == "1"
    assert int(rows["com"]["rounds"]) > 1
    assert float(rows["com"]["bytes_up"]) > float(rows["mean"]["bytes_up"]) > 0
    assert rows["base"]["peak_bytes"] == ""
    assert int(rows["mean"]["peak_bytes"]) > 10**7


def test_the_sites_forget_the_runs_of_a_comparison(
    sites: TinySites, compared: tuple[Path, str]
) -> None:
    assert not list((sites.folder / "cache" / "runs").glob("*/*"))


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Names of the methods that are really run."""
    names, merge = [], Federation.merge

    def noted(self: Any, method: Any, other_params: Any) -> MergedModel:
        names.append(method.name)
        return merge(self, method, other_params)

    monkeypatch.setattr(Federation, "merge", noted)
    return names


def test_a_comparison_goes_on_where_it_stopped_and_only_adds(
    sites: TinySites, tmp_path: Path, merges: list[Any]
) -> None:
    file, output = run_file(sites, tmp_path), tmp_path / "out"
    assert compare(file, output, "--methods", "mean").exit_code == 0
    before = read(output / "methods.csv")
    assert compare(file, output, "--methods", "mean,ties").exit_code == 0
    assert merges == ["mean", "ties"]
    assert read(output / "methods.csv")[: len(before)] == before


def test_of_two_comparisons_into_one_folder_at_once_the_second_is_refused(
    sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output, merge, second = run_file(sites, tmp_path), tmp_path / "out", Federation.merge, []

    def meanwhile(self: Any, method: Any, other_params: Any) -> MergedModel:
        second.append(compare(file, output, "--methods", "mean").exception)
        return merge(self, method, other_params)

    with monkeypatch.context() as patch:
        patch.setattr(Federation, "merge", meanwhile)
        assert compare(file, output, "--methods", "mean").exit_code == 0
    assert [type(error) for error in second] == [InUseError]
    assert "another process is using" in str(second[0])
    assert compare(file, output, "--methods", "mean").exit_code == 0
    assert not list(tmp_path.glob(".*.lock"))


def test_what_was_run_under_other_settings_is_not_found(
    sites: TinySites, tmp_path: Path, merges: list[Any]
) -> None:
    file, output = run_file(sites, tmp_path), tmp_path / "out"
    compare(file, output, "--methods", "ties,mean")
    file.write_text(file.read_text() + "[ties]\ndensity = 0.5\n")
    compare(file, output, "--methods", "ties,mean")
    assert merges == ["ties", "mean", "ties"]


def test_what_was_run_on_other_held_out_samples_is_not_found(
    sites: TinySites, tmp_path: Path, merges: list[Any]
) -> None:
    file, output = run_file(sites, tmp_path), tmp_path / "out"
    held_out = tmp_path / "held-out.jsonl"
    samples = read_samples(sites.nodes[0]["data"])
    text = file.read_text().replace(
        f'held-out = "{sites.nodes[0]["data"]}"', f'held-out = "{held_out}"'
    )
    file.write_text(text)
    for labels in ("ab", "ba"):
        turned = [s | {"label": labels["ab".index(s["label"])]} for s in samples]
        write_samples(held_out, turned)
        assert compare(file, output, "--methods", "mean").exit_code == 0
    assert merges == ["mean", "mean"]


def test_a_kept_result_that_was_cut_short_is_run_again(
    sites: TinySites, tmp_path: Path, merges: list[Any]
) -> None:
    file, output = run_file(sites, tmp_path), tmp_path / "out"
    compare(file, output, "--methods", "mean")
    before = (output / "sites.csv").read_bytes()
    (kept,) = (output / "results").glob("mean-*.json")
    kept.write_bytes(kept.read_bytes()[:40])
    compare(file, output, "--methods", "mean")
    assert merges == ["mean", "mean"]
    assert (output / "sites.csv").read_bytes() == before


def test_a_folder_with_something_else_in_it_is_left_alone(sites: TinySites, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    result = compare(run_file(sites, tmp_path), tmp_path / "out", "--methods", "mean")
    assert "thesis.tex" in str(result.exception)


def test_a_site_can_be_judged_on_a_draw_of_its_held_out_samples(
    sites: TinySites, tmp_path: Path
) -> None:
    file, output = run_file(sites, tmp_path), tmp_path / "out"
    file.write_text(file.read_text() + "[evaluate]\nsamples = 3\n")
    assert compare(file, output, "--methods", "mean").exit_code == 0
    found = json.loads((output / "comparison.json").read_text())
    counts = {s["samples"] for e in found["entries"] for s in e["result"]["scores"].values()}
    assert counts == {3}


def test_without_held_out_samples_there_is_nothing_to_compare(
    sites: TinySites, tmp_path: Path
) -> None:
    file = run_file(sites, tmp_path, held_out="")
    result = compare(file, tmp_path / "out", "--methods", "mean")
    assert isinstance(result.exception, ConfigError)
    assert "set `held-out`" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_is_refused_before_anything_is_run(
    sites: TinySites, tmp_path: Path
) -> None:
    result = compare(run_file(sites, tmp_path), tmp_path / "out", "--methods", "meen")
    assert isinstance(result.exception, ConfigError)
    assert "unknown method 'meen'" in str(result.exception)


def test_every_candidate_is_a_possible_setting_and_the_default_comes_first() -> None:
    usual = RunSettings()
    assert with_candidate(usual, 0) == usual
    for method in METHODS.values():
        assert candidates(method, 9)[0] == {}
        for number, candidate in enumerate(candidates(method, 9)):
            changed = with_candidate(usual, number).flat()
            for key, value in candidate.items():
                name = setting_named(key, method, usual)
                assert changed[name] == value != usual.flat()[name]


def test_a_budget_is_the_same_for_all_that_have_as_many_candidates() -> None:
    assert {len(candidates(METHODS[name], 4)) for name in ("com", "ties", "pcb")} == {4}
    assert candidates(METHODS["mean"], 4) == ({},)


def test_one_seed_has_no_spread() -> None:
    assert Spread((0.5,)).deviation is None
    assert Spread((0.4, 0.6)).mean == 0.5


def test_memory_that_was_given_back_still_counts() -> None:
    with peak_resident() as peak:
        before = peak()
        block = bytearray(64 * 2**20)
        del block
    after = peak()
    assert before is not None
    assert after is not None
    assert after - before > 32 * 2**20


def test_where_the_kernel_does_not_tell_memory_is_unknown(tmp_path: Path) -> None:
    with peak_resident(tmp_path / "no-such-process") as peak:
        pass
    assert peak() is None


def result(name: str, label: str, **scores: Any) -> MethodResult:
    by_site = {site: Score(accuracy, 100) for site, accuracy in scores.items()}
    return MethodResult(name, label, 1, 2.0, 10, 20, by_site)


def comparison(*seeds: list[Any]) -> Comparison:
    """A comparison of what was scored at seeds 0, 1 …: a list of method results each."""
    entries = [Entry(seed, found) for seed, results in enumerate(seeds) for found in results]
    return Comparison("x", "base", (), tuple(range(len(seeds))), 1, tuple(entries), ())


def test_metrics_are_normalised_at_each_seed_and_then_averaged() -> None:
    first = [result("individual", "Own", a=0.5, b=1.0), result("mean", "Mean", a=0.4, b=0.5)]
    second = [result("individual", "Own", a=0.8, b=1.0), result("mean", "Mean", a=0.4, b=0.6)]
    own, mean = over_seeds(comparison(first, second))
    assert own.normalised.values == own.worst.values == (1.0, 1.0)
    assert mean.normalised.values == pytest.approx((0.65, 0.55))
    assert mean.worst.values == pytest.approx((0.5, 0.5))
    assert mean.worst_site == "b"
    assert mean.sites["a"].mean == 0.4


def test_what_the_run_sets_otherwise_than_published_is_told() -> None:
    given = {"ties.density": 0.1, "merge.influence": True, "dare.drop": 0.5, "merge.ridge": 0.01}
    settings = read_run_settings({"methods": "com,ties", **given})
    found = ComparisonSettings(settings, [0]).differences()
    assert found == {"ties.density": 0.1}
    told = budget_text(replace(comparison([result("mean", "Mean", a=0.4)]), given=found))
    assert told.endswith("but for ties.density = 0.1, as the run's file has it.")
    assert "but for" not in budget_text(comparison([result("mean", "Mean", a=0.4)]))


def test_a_method_that_lacks_a_seed_says_so() -> None:
    first = [result("individual", "Own", a=0.5), result("mean", "Mean", a=0.4)]
    second = [result("individual", "Own", a=0.5)]
    own, mean = over_seeds(comparison(first, second))
    assert own.label == "Own"
    assert mean.label == "Mean (1 of 2 seeds)"


def test_the_verdict_names_the_lead_and_whether_it_could_be_chance() -> None:
    def seed(com: float, mean: float) -> list[Any]:
        return [
            result("individual", "Own", a=1.0),
            result("com", "Chain", a=com),
            result("mean", "Mean", a=mean),
        ]

    found = conclude_comparison(over_seeds(comparison(seed(0.95, 0.8), seed(0.97, 0.8))))
    assert found.startswith("Chain (com) keeps 96.0")
    # Wilson, 100 rows: 4.5 points at 95 %, 3.7 at 97 % (averaged), 7.8 at 80 %.
    assert (
        "It leads Mean (mean) by 16.0 points, more than the sampling error of ±\u00a08.8" in found
    )
    assert found.endswith("and is ahead at 2 of 2 seeds.")
    found = conclude_comparison(over_seeds(comparison(seed(0.9, 0.8), seed(0.7, 0.79))))
    assert "by 0.5 points, less than the sampling error" in found
    assert found.endswith("and is ahead at 1 of 2 seeds.")
    assert "one seed says nothing" in conclude_comparison(over_seeds(comparison(seed(0.9, 0.8))))
    assert conclude_comparison(over_seeds(comparison(seed(0.9, 0.8)[:1]))).startswith(
        "None of the methods"
    )
