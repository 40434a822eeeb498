"""Documents are what the code says, and the example among the settings is one."""

import re
from pathlib import Path

from layerweld.settings.reference import CHECKOUT, documents, settings_tables
from layerweld.settings.run import RunSettings
from layerweld.settings.sites import SiteEntry, read_run_file

DOCUMENT = CHECKOUT / "docs/settings.md"


def test_every_file_that_is_made_from_the_code_is_what_the_code_says() -> None:
    for file, text in documents().items():
        assert (CHECKOUT / file).read_text() == text, (
            f"{file} is out of step: python -m layerweld.settings.reference"
        )


def test_every_setting_has_a_row_that_says_what_it_means() -> None:
    rows, table = {}, ""
    for line in settings_tables().splitlines():
        if line.startswith("## "):
            table = line.removeprefix("## ").strip("`[]")
        elif match := re.fullmatch(r"\| `([\w-]+)` \| (.+?) \| (.+?) \| (.+) \|", line):
            rows[f"{table}.{match[1]}".removeprefix("Top level.")] = match[4]
    sites = {f"sites.{field.alias}" for field in SiteEntry.model_fields.values()}
    assert rows.keys() == RunSettings().flat().keys() | sites
    assert all(meaning.endswith(".") for meaning in rows.values())


def test_the_example_is_a_run_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    example = re.search(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example
    file.write_text(example[1])
    settings, sites = read_run_file(file)
    assert settings.calibration.prompt_end == "\nTopic:"
    assert [site.name for site in sites] == ["north", "south"]
