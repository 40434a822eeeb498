"""Scores that merging does not change are measured once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.handlers.measure import kept_or_measured
from layerweld.settings.run import validate_settings
from layerweld.settings.sites import SiteEntry


@pytest.fixture
def site(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(
        site=SiteEntry(name="ash", data="data.jsonl"),
        settings=validate_settings({"cache": str(tmp_path / "cache")}),
        head=SimpleNamespace(content=b"head"),
        base=SimpleNamespace(fingerprint="base"),
        adapter=SimpleNamespace(digest="adapter"),
        data=SimpleNamespace(held_out=SimpleNamespace(digest="dataset")),
    )


def measured_once(site: Any, kind: str, score: tuple[float, int]) -> tuple[tuple[float, int], int]:
    taken = []

    def measure() -> tuple[float, int]:
        taken.append(kind)
        return score

    return kept_or_measured(site, kind, measure), len(taken)


def test_a_score_is_measured_once_per_kind(site: SimpleNamespace) -> None:
    assert measured_once(site, "base", (0.25, 8)) == ((0.25, 8), 1)
    assert measured_once(site, "base", (0.75, 8)) == ((0.25, 8), 0)
    assert measured_once(site, "individual", (0.75, 8)) == ((0.75, 8), 1)


@pytest.mark.parametrize("part", ["base", "adapter", "data"])
def test_another_model_adapter_or_samples_are_measured_anew(
    site: SimpleNamespace, part: str
) -> None:
    measured_once(site, "individual", (0.25, 8))
    other = SimpleNamespace(fingerprint="other", digest="other")
    setattr(site, part, SimpleNamespace(held_out=other) if part == "data" else other)
    assert measured_once(site, "individual", (0.75, 8)) == ((0.75, 8), 1)


def test_another_head_is_measured_anew(site: SimpleNamespace) -> None:
    measured_once(site, "individual", (0.25, 8))
    site.head.content = b"another"
    assert measured_once(site, "individual", (0.75, 8)) == ((0.75, 8), 1)


@pytest.mark.parametrize("content", ["", "[0.5]", "null", '["a", "b"]'])
def test_a_damaged_file_is_measured_anew(
    site: SimpleNamespace, tmp_path: Path, content: str
) -> None:
    measured_once(site, "base", (0.25, 8))
    (file,) = (tmp_path / "cache/scores").iterdir()
    file.write_text(content)
    assert measured_once(site, "base", (0.75, 8)) == ((0.75, 8), 1)
