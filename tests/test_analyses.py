"""The paper's analyses, on tiny sites: each measures what its figure says."""

from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from experiments import ablation, costs, importance, shift, unseen_tasks
from experiments.benchmark_runs import compare_methods, open_federation
from layerweld.settings.run import RunSettings
from tests.tiny_sites import TinySites, make_labelled_sites


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    return make_labelled_sites(tmp_path_factory.mktemp("sites"))


@pytest.fixture
def settings(sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return sites.settings().model_copy(update={"methods": "com"})


def test_each_row_of_the_ablation_adds_one_part() -> None:
    made = [ablation.with_variant(RunSettings(), variant) for variant in ablation.COMPONENTS]
    about = [(m.methods, m.merge.normalization, m.merge.importance) for m in made]
    steps = [sum(a != b for a, b in zip(one, two, strict=True)) for one, two in pairwise(about)]
    assert steps == [1, 1, 1]
    assert made[-1].merge == RunSettings().merge


def test_a_row_of_the_ablation_is_run_with_its_own_samples(
    sites: TinySites, settings: RunSettings
) -> None:
    row = ablation.table_row(ablation.SAMPLES[0], settings, sites.nodes, [0])
    assert row["variant"] == "2"
    assert 0 <= row["worst"] <= row["normalised"]


def test_groups_of_one_kind_share_a_panel() -> None:
    names = ["encoder.layer.0.output.dense", "encoder.layer.11.output.dense", "pooler"]
    assert [shift.kind_of(name) for name in names] == ["output.dense", "output.dense", "pooler"]


def test_importance_on_the_base_model_is_that_of_the_chain_where_nothing_is_merged_yet(
    sites: TinySites, settings: RunSettings
) -> None:
    """The first group is measured behind no merged layer: there both references are one."""
    chain = next(
        entry.result
        for entry in compare_methods(settings, sites.nodes, [0]).entries
        if entry.result.name == "com"
    )
    found = importance.on_the_base_model(settings, sites.nodes)
    first = importance.on_the_base_model(settings, sites.nodes, groups=1)
    assert first == pytest.approx(dict(chain.groups[0].importance))
    assert found != first


def test_no_cheaper_method_beats_one_on_the_front() -> None:
    table = pd.DataFrame(
        {
            "method": ["dear", "cheap", "worse", "dominated"],
            "bytes": [100, 1, 1, 50],
            "normalised": [0.9, 0.7, 0.6, 0.65],
        }
    )
    assert costs.front(table, "bytes") == ["cheap", "dear"]


def test_each_split_leaves_other_sites_out(sites: TinySites) -> None:
    nodes = [{"partition-id": i} for i in range(4)]
    first, second = (unseen_tasks.divided(nodes, split) for split in (0, 1))
    assert first == (nodes[2:], nodes[:2])
    assert second == (nodes[:2], nodes[2:])


def test_a_merge_is_judged_at_sites_that_had_no_part_in_it(
    sites: TinySites, settings: RunSettings
) -> None:
    rows = unseen_tasks.table_rows(settings, sites.nodes[:2], sites.nodes[2:], 0)
    assert [row["method"] for row in rows] == ["base", "individual", "com"]
    assert {row["left_out"] for row in rows} == {"cedar"}
    with open_federation(settings, sites.nodes[:2]) as alone:
        merged = alone.merge(alone.methods[0], {})
        scores = alone.evaluate("merged", merged)
    assert rows[-1]["seen"] == pytest.approx(sum(s.accuracy for s in scores.values()) / 2)
