"""``layerweld methods NAME``: all about one method, in words that fit what it does."""

import re
from typing import Any

import pytest
from typer.testing import CliRunner

from layerweld.cli import main as cli
from layerweld.errors import ConfigError
from layerweld.settings.methods import method_named
from layerweld.settings.run import RunSettings


@pytest.mark.parametrize(
    ("name", "expected", "keys"),
    [
        ("ties", "every single site", {"ties.density", "ties.scaling"}),
        ("ties+lines", "every single site", {"ties.density", "lines.slope"}),
        ("mean", "sums over the sites", set()),
        ("fisher", "labelled calibration samples", {"fisher.floor"}),
        ("ffa-lora", "the same, frozen A at every site", set()),
        ("adamerging++", "as many as its settings say", {"adamerging.density"}),
    ],
)
def test_a_method_is_shown_at_length_with_what_it_reads(
    name: str, expected: str, keys: Any
) -> None:
    shown = CliRunner().invoke(cli.app, ["methods", name], env={"COLUMNS": "160"}).output
    assert method_named(name, RunSettings()).source in shown
    assert expected in shown
    listed = set(re.findall(r"│ ([a-z-]+\.[a-z-]+) ", shown))
    assert listed >= keys | {"merge.rank"}
    assert ("ties.scaling" in listed) is (name == "ties")  # LiNeS takes its place
    assert {key.partition(".")[0] for key in listed - keys} <= {"merge", name.rstrip("+")}


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        (
            "com",
            ["G: ", "B and A·G", "one number a layer", "itself, of a LoRA as A", "server alone"],
        ),
        ("mats", ["G: ", "ΔW: the update of each layer"]),
        ("ties", ["ΔW: the update of each layer", "the server alone"]),
        ("adamerging", ["∂H/∂λ: ", "to the server and to every other site"]),
        ("prodistill", ["∂D/∂W: ", "the server alone"]),
    ],
)
def test_all_that_leaves_a_site_is_named_and_who_receives_it(name: str, sent: list[str]) -> None:
    shown = CliRunner().invoke(cli.app, ["methods", name], env={"COLUMNS": "160"}).output
    about, _, _ = shown.partition("Settings")
    always = ("in the handshake", "norms, biases and embeddings", "accuracies and the number")
    assert all(what in about for what in (*sent, *always))
    assert ("with merge.anchor" in about) == (name == "com")


def test_what_a_method_stands_for_is_not_among_its_settings() -> None:
    shown = CliRunner().invoke(cli.app, ["methods", "mats"], env={"COLUMNS": "160"}).output
    assert {"mats.iterations", "merge.importance"} <= set(re.findall(r"m[\w.-]+", shown))
    assert not {"merge.ridge", "merge.anchor"} & set(re.findall(r"merge[\w.-]+", shown))


@pytest.mark.parametrize("name", ["com", "regmean++", "jacobi"])
def test_a_chain_is_named_by_its_granularity_which_is_not_set_beside_it(name: str) -> None:
    shown = CliRunner().invoke(cli.app, ["methods", name], env={"COLUMNS": "160"}).output
    assert "merge.ridge" in shown
    assert "merge.granularity" not in shown


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    asked = CliRunner().invoke(cli.app, ["methods", "tie"])
    assert isinstance(asked.exception, ConfigError)
    assert "ties" in str(asked.exception)


def test_help_says_what_an_argument_is() -> None:
    shown = CliRunner().invoke(cli.app, ["methods", "--help"]).output
    assert "One method, for everything about it" in shown
