"""Settings: read once, checked, the same whichever way they come."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from layerweld.errors import ConfigError
from layerweld.settings.run import RunSettings, read_run_settings, validate_settings


def app_config() -> dict[Any, Any]:
    """The app's own run configuration, flat as Flower hands it over."""
    tables = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    flat: dict[str, Any] = {}
    for key, value in tables["tool"]["flwr"]["app"]["config"].items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{key}.{name}" if name else key: entry for name, entry in entries}
    return flat


def test_flat_and_back_changes_nothing() -> None:
    settings = validate_settings({"methods": "com,mean", "merge": {"ridge": 0.3}})
    assert read_run_settings(settings.flat()) == settings


def test_every_setting_can_be_overridden_in_a_flower_run() -> None:
    # Flower refuses a key on the command line that the app does not declare.
    assert app_config().keys() == RunSettings().flat().keys()
    read_run_settings(app_config())


@pytest.mark.parametrize(
    ("nested", "says"),
    [
        ({"merge": {"rigde": 0.1}}, r"unknown setting 'merge.rigde'.*ridge"),
        ({"merge": {"ridge": -0.1}}, r"merge\.ridge = -0\.1"),
        ({"merge": {"ridge": "0.1"}}, r"merge\.ridge = '0\.1'"),
        ({"merge": {"normalization": "tokens"}}, r"'token', 'feature', 'trace' or 'none'"),
        ({"mehtods": "com"}, r"unknown setting 'mehtods'.*methods"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_possible(
    nested: dict[str, dict[str, float]] | dict[str, dict[str, str]] | dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        validate_settings(nested)


def test_digest_follows_what_decides_the_merge_and_nothing_else() -> None:
    plain = RunSettings()
    renamed = plain.model_copy(update={"name": "other", "output": "elsewhere", "timeout": 5.0})
    stronger = validate_settings({"merge": {"ridge": 0.3}})
    assert renamed.digest() == plain.digest() != stronger.digest()
