"""What the documents show runs and prints what it says; their links lead somewhere."""

import re
from pathlib import Path
from typing import Any

import pytest

from layerweld.merging.registry import METHODS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*.md")})

HISTORY = {"CHANGELOG.md", "LOG.md"}
"""Pages that speak of what was."""

_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(
    r"\b(?:tests|layerweld|client|server|strategies|experiments)/[\w/.-]+\.(?:py|toml)\b"
)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name_of(page: Any) -> str:
    return str(page.relative_to(ROOT))


def anchors_in(page: Any) -> set[Any]:
    """The names that a forge gives the headings."""
    headings = _HEADING.findall(re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page: Any) -> None:
    for link in _LINK.findall(_CODE.sub("", page.read_text())):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not heading or heading in anchors_in(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_of_the_code_that_a_page_names_exist(page: Any) -> None:
    missing = [path for path in _PATH.findall(page.read_text()) if not (ROOT / path).exists()]
    assert not missing or page.name in HISTORY, missing


def test_readme_fits_on_three_screens() -> None:
    assert len(README.read_text().splitlines()) <= 130


def test_readme_counts_the_methods() -> None:
    assert f"All {len(METHODS)} merge methods" in README.read_text()


def test_the_index_has_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {link.partition("#")[0] for link in _LINK.findall(index.read_text())}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


@pytest.mark.parametrize("page", [README, ROOT / "docs/python.md"], ids=name_of)
def test_the_example_in_python_prints_what_its_comment_says(
    page: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(examples) == 1
    exec(compile(examples[0], str(page), "exec"), {})
    said = examples[0].splitlines()[-1].partition("  # ")[2]
    assert capsys.readouterr().out.strip() == said
