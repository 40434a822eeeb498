"""The code in the page for people who know Flower runs, and prints what its comments say."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_sites import BERT_LAYERS, make_sites

PAGE = Path(__file__).parents[1] / "docs/flower.md"


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """What the page says is there: a grid, settings and a base model."""
    sites = make_sites(tmp_path / "sites", BERT_LAYERS)
    monkeypatch.chdir(tmp_path)
    settings = sites.settings()
    return {"grid": sites.grid(settings), "settings": settings, "base": str(sites.base)}


def test_a_strategy_is_built_started_and_extended_as_the_page_shows(
    named: dict[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), named)
        said = example.splitlines()[-1].partition("  # ")[2]
        assert capsys.readouterr().out.strip().splitlines()[-1] == said
    assert named["strategy"].lost == {}
    assert named["result"].train_metrics_clientapp[8]["sites"] == 3
