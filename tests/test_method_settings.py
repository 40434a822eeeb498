"""Settings of methods: known, read by the method they are given to, declared and documented."""

import tomllib

import pytest

from layerweld.errors import ConfigError
from layerweld.merging.core_space import CoreSpace
from layerweld.merging.registry import METHODS
from layerweld.runtime.app_path import app_folder
from layerweld.settings.facts import defaults_of
from layerweld.settings.methods import methods_of
from layerweld.settings.overrides import with_overrides
from layerweld.settings.run import RunSettings
from tests.run_methods import ONE_ROUND


def test_an_unknown_method_and_an_unknown_setting_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'tie'; known: chain, com, .*ties"):
        methods_of(RunSettings(methods="tie"))
    with pytest.raises(ConfigError, match=r"'ties.densty'; known here: density, scaling"):
        with_overrides(RunSettings(), "ties", ["densty=0.1"])
    with pytest.raises(ConfigError, match=r"ties.density = 2.0: .*less than or equal to 1"):
        with_overrides(RunSettings(), "ties", ["density=2.0"])
    with pytest.raises(ConfigError, match=r"'dare-ties.dorp'; known here: drop, scaling, seed"):
        with_overrides(RunSettings(), "dare-ties", ["dorp=0.1"])
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        with_overrides(RunSettings(), "ties", ["density"])


@pytest.mark.parametrize(
    ("method", "entries"),
    [
        ("ties", ["merge.ridge=0.5"]),
        ("ties", ["tsv.scaling=2.0"]),
        ("ties", ["lines.slope=0.3"]),
        ("com", ["granularity=block"]),
        ("com", ["rounds=3"]),
        ("chain", ["merge.rounds=3"]),
        ("regmean", ["mats.iterations=5"]),
        ("mats", ["ridge=0.5"]),
    ],
)
def test_a_setting_that_the_method_does_not_read_is_an_error(
    method: str, entries: list[str]
) -> None:
    key = entries[0].partition("=")[0]
    with pytest.raises(ConfigError, match=rf"--set {key} has no effect on .*leave it out"):
        with_overrides(RunSettings(), method, entries)


@pytest.mark.parametrize(
    ("method", "entries"),
    [
        ("ties", ["merge.rank=4", "calibration.samples=9", "evaluate.batch_size=8"]),
        ("com", ["granularity=group", "max_share=0.5"]),
        ("jacobi", ["rounds=3"]),
        ("chain", ["granularity=jacobi", "rounds=3"]),
        ("mats", ["iterations=5", "importance=uniform"]),
        ("ties+lines", ["slope=0.2"]),
        ("adamerging++", ["seed=3"]),
        ("ties, com", ["density=0.5", "merge.ridge=0.1"]),
    ],
)
def test_what_a_method_reads_may_be_set(method: str, entries: list[str]) -> None:
    assert with_overrides(RunSettings(), method, entries) != RunSettings()


@pytest.mark.parametrize(
    "entries", [["ridge=0.5", "merge.ridge=1"], ["max-share=1", "max_share=1"]]
)
def test_a_setting_that_is_given_twice_is_an_error(entries: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--set .* and --set .* are the same setting"):
        with_overrides(RunSettings(), "com", entries)


def test_overrides_go_to_the_methods_table_unless_they_name_one() -> None:
    settings = with_overrides(
        RunSettings(), "core-space+lines", ["inner=tsv", "density=0.3", "lines.slope=0.2"]
    )
    assert (settings.table(CoreSpace).inner, settings.table(CoreSpace).density) == ("tsv", 0.3)
    assert settings.lines.slope == 0.2
    assert with_overrides(RunSettings(), "com", ["ridge=0.5"]).merge.ridge == 0.5


def test_the_app_declares_every_setting_of_every_method_with_its_default() -> None:
    app = tomllib.loads((app_folder() / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    declared = app["config"]
    defaults = RunSettings()
    flat = {f"{t}.{k}" for t, of in declared.items() if isinstance(of, dict) for k in of}
    assert flat == {key for key in defaults.flat() if "." in key}
    for name in ONE_ROUND:
        own = defaults.of_method(name).model_dump(by_alias=True)
        assert declared.get(name, {}) == own, name
    for table in ("lines", "fisher"):
        assert declared[table] == getattr(defaults, table).model_dump(by_alias=True)


def test_the_documentation_has_a_row_for_every_method_with_its_defaults() -> None:
    text = (app_folder() / "docs/methods.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert rows.keys() == METHODS.keys()
    for name, method in METHODS.items():
        assert f"| {defaults_of(method)} |" in rows[name], name
        assert ("| Σ |" in rows[name]) == method.sums, name
        assert rows[name].endswith(f"| {method.source} |"), name


@pytest.mark.parametrize(("typed", "meant"), [("tise", "ties"), ("regmea", "regmean")])
def test_the_name_that_was_probably_meant_is_suggested(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"Did you mean '{meant}'\?$"):
        methods_of(RunSettings(methods=typed))
