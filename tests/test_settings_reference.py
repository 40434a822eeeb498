"""The page of settings is what the code says, and its example is one."""

import re
from pathlib import Path

from layerweld.settings.reference import settings_page
from layerweld.settings.run import RunSettings
from layerweld.settings.sites import SiteEntry, read_run_file

DOCUMENT = Path(__file__).parents[1] / "docs/settings.md"


def test_the_document_is_what_the_code_says():
    assert DOCUMENT.read_text() == settings_page(), (
        "write it anew: python -m layerweld.settings.reference > docs/settings.md"
    )


def test_every_setting_has_a_row_that_says_what_it_means():
    rows, table = {}, ""
    for line in settings_page().splitlines():
        if line.startswith("## "):
            table = line.removeprefix("## ").strip("`[]")
        elif match := re.fullmatch(r"\| `([\w-]+)` \| (.+?) \| (.+?) \| (.+) \|", line):
            rows[f"{table}.{match[1]}".removeprefix("Top level.")] = match[4]
    sites = {f"sites.{field.alias}" for field in SiteEntry.model_fields.values()}
    assert rows.keys() == RunSettings().flat().keys() | sites
    assert all(meaning.endswith(".") for meaning in rows.values())


def test_the_example_is_a_run_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(re.search(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1])
    settings, sites = read_run_file(file)
    assert settings.calibration.prompt_end == "\nTopic:"
    assert [site.name for site in sites] == ["north", "south"]
