"""What a person types, and the one line they get when it cannot work."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from layerweld.cli import main as cli
from layerweld.errors import ConfigError, LayerweldError
from layerweld.settings.run import RunSettings
from tests.tiny_sites import TinySites

runner = CliRunner()


def merge(sites: TinySites, output: Path, *options: str, nodes: list[Any] | None = None) -> Result:
    arguments = ["merge", str(sites.base), "--output", str(output), "--max-length", "12"]
    for node in nodes or sites.nodes:
        arguments += ["--site", f"{node['name']}={node['adapter']}:{node['data']}"]
    return runner.invoke(cli.app, [*arguments, *options])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_merge_writes_an_adapter_a_manifest_and_a_report(sites: TinySites, tmp_path: Path) -> None:
    result = merge(sites, tmp_path / "out", "--ridge", "0.1", "--samples", "10")
    assert result.exit_code == 0, result.output
    assert {
        "adapter",
        "environment.json",
        "manifest.json",
        "report.html",
        "results.json",
        "state.json",
    } == {p.name for p in (tmp_path / "out").iterdir()}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["settings"]["merge"]["ridge"] == 0.1
    assert [site["samples"] for site in manifest["sites"]] == [10, 10, 10]
    assert set(manifest["groups"][0]["importance"]) == {"ash", "birch", "cedar"}


def test_a_merge_that_is_cut_to_a_rank_says_what_that_costs(
    sites: TinySites, tmp_path: Path
) -> None:
    result = merge(sites, tmp_path / "out", "--rank", "2")
    found = re.search(r"largest compression error of a group (0\.\d+)", result.output)
    groups = json.loads((tmp_path / "out/results.json").read_text())["methods"][0]["groups"]
    largest = max(group["compression_error"] for group in groups)
    assert found
    assert float(found[1]) == pytest.approx(largest, rel=0.01)


def test_the_same_run_from_a_file_gives_the_same_manifest(sites: TinySites, tmp_path: Path) -> None:
    assert merge(sites, tmp_path / "merged", "--batch-size", "4").exit_code == 0
    tables = [f'base = "{sites.base}"\n[calibration]\nmax-length = 12\nbatch-size = 4\n']
    for node in sites.nodes:
        tables.append("[[sites]]\n" + "".join(f'{k} = "{v}"\n' for k, v in node.items()))
    (tmp_path / "run.toml").write_text("\n".join(tables))
    result = runner.invoke(
        cli.app, ["simulate", str(tmp_path / "run.toml"), "--output", str(tmp_path / "simulated")]
    )
    assert result.exit_code == 0, result.output
    merged, simulated = (tmp_path / n / "manifest.json" for n in ("merged", "simulated"))
    assert merged.read_bytes() == simulated.read_bytes()


def test_a_column_of_another_name_is_one_setting_away(sites: TinySites, tmp_path: Path) -> None:
    nodes = []
    for node in sites.nodes:
        data = tmp_path / f"{node['name']}.jsonl"
        data.write_text((sites.folder / data.name).read_text().replace('"text"', '"body"'))
        nodes.append(node | {"data": str(data)})
    refused = merge(sites, tmp_path / "out", nodes=nodes)
    assert "`calibration.text-column`" in str(refused.exception)
    option = ("--set", "calibration.text-column=body")
    assert merge(sites, tmp_path / "out", *option, nodes=nodes).exit_code == 0
    told = runner.invoke(cli.app, ["merge", "--help"], env={"TERMINAL_WIDTH": "80"}).output
    assert " ".join(option) in " ".join(told.split())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--method ties --ridge 0.5", "--ridge has no effect on ties"),
        ("--method ties --covariate-shift", "--covariate-shift has no effect on ties"),
        ("--method regmean --set granularity=block", "--set granularity has no effect on regmean"),
        ("--set rounds=3", "--set rounds has no effect on com"),
        ("--method mats --ridge 0.5", "--ridge has no effect on mats"),
        ("--ridge 0.5 --set ridge=1", "--ridge and --set ridge are the same setting"),
        ("--seed 1 --set calibration.seed=1", "--seed and --set calibration.seed are the same"),
    ],
)
def test_an_option_without_effect_is_an_error(
    sites: TinySites, tmp_path: Path, options: str, says: str
) -> None:
    result = merge(sites, tmp_path / "out", *options.split())
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(says)
    assert not (tmp_path / "out").exists()


def test_plan_lists_every_group(sites: TinySites) -> None:
    result = runner.invoke(cli.app, ["plan", str(sites.base)])
    assert result.exit_code == 0
    assert "8 layer groups in 2 blocks" in result.output


def test_an_unknown_normalization_lists_the_known_ones(sites: TinySites, tmp_path: Path) -> None:
    result = merge(sites, tmp_path / "out", "--set", "normalization=tokens")
    assert isinstance(result.exception, ConfigError)
    assert "feature" in str(result.exception)


@pytest.fixture
def settings_of(
    sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """The settings that `layerweld merge` with these options would run."""
    made = []
    monkeypatch.setattr(cli, "_run", lambda settings, *_rest: made.append(settings))
    site = f"ash={sites.nodes[0]['adapter']}:{sites.nodes[0]['data']}"

    def settings_of(*options: Any) -> Any:
        arguments = ["merge", "base", "--site", site, "--output", str(tmp_path / "out")]
        assert runner.invoke(cli.app, [*arguments, *options]).exit_code == 0
        return made.pop()

    return settings_of


def test_merge_has_no_default_of_its_own(settings_of: Callable[..., Any]) -> None:
    assert settings_of() == RunSettings(base="base", name="out", min_sites=1)


def test_every_option_of_merge_is_a_setting(settings_of: Callable[..., Any]) -> None:
    options = {
        "merge.ridge": 0.5,
        "merge.rank": 2,
        "calibration.max-length": 3,
        "calibration.batch-size": 4,
        "calibration.samples": 5,
        "calibration.seed": 6,
    }
    typed = [f"--{key.partition('.')[2]}={value}" for key, value in options.items()]
    made = settings_of(*typed, "--covariate-shift", "--base-name=bert", "--method=com")
    usual = RunSettings(base="base", name="out", min_sites=1).flat()
    changed = {k: v for k, v in made.flat().items() if v != usual[k]}
    assert changed == options | {
        "merge.covariate-shift": "first",
        "base-name": "bert",
        "methods": "com",
    }


@pytest.mark.parametrize(
    ("changes", "content", "says"),
    [
        ({"adapter": "nowhere"}, None, "nowhere"),
        ({}, "", "empty|no row|holds no"),
        ({}, '{"texts": "w1 w2"}\n', "text"),
        ({}, '{"text": "w1 w2"}\nnonsense\n{"text": 3}\n', "max-unreadable"),
    ],
    ids=["no adapter", "no samples", "wrong column", "unreadable samples"],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    sites: TinySites, tmp_path: Path, changes: Any, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "data.jsonl").write_text(content)
        changes = changes | {"data": str(tmp_path / "data.jsonl")}
    result = merge(sites, tmp_path / "out", nodes=[sites.nodes[0], sites.nodes[1] | changes])
    assert isinstance(result.exception, LayerweldError)

    assert re.search(says, str(result.exception)), result.exception
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_expected_errors_are_a_line_a_next_step_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["layerweld", "plan", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    assert stopped.value.code == 3
    assert "config.json" in captured.err
    assert captured.err.splitlines()[-1].startswith("next: ")
    assert captured.out == ""


def test_a_misspelt_setting_in_a_file_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        '[merge]\nrigde = 0.1\n[[sites]]\nname = "a"\ndata = "a.jsonl"\n'
    )
    result = runner.invoke(cli.app, ["simulate", str(tmp_path / "run.toml")])
    assert isinstance(result.exception, LayerweldError)
    assert "merge.rigde" in str(result.exception)
    assert "ridge" in str(result.exception)
