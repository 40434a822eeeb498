"""A file that has its name is on the disk, and so is the name: a power cut takes neither."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from os import stat_result
from pathlib import Path
from typing import Any

import pytest

from layerweld.demo.federation import prepared
from layerweld.demo.texts import LabelledText, write_texts
from layerweld.deploy.site import open_site
from layerweld.runtime.disk import new_folder, writing
from server.journal import FINISHED, RunJournal
from tests.tiny_sites import TinySites, make_labelled_sites
from tests.typed_commands import init_coordinator, init_site, lw

pytestmark = pytest.mark.usefixtures("one_thread")


class Disk:
    """What was brought to the disk, and as what: whatever changed afterwards is not on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.renamed_early: list[Any] = []
        self._kept: set[Any] = set()
        self._fsync, self._replace = os.fsync, Path.replace
        monkeypatch.setattr(os, "fsync", self._note)
        monkeypatch.setattr(Path, "replace", lambda *names: self._rename(*names))

    def lacks(self, folder: Path) -> list[Any]:
        """The files and folders that a power cut would take, or take a name out of."""
        there = (folder, *folder.rglob("*"))
        return [str(path) for path in there if _content(path.stat()) not in self._kept]

    def _note(self, descriptor: Any) -> None:
        self._fsync(descriptor)
        self._kept.add(_content(os.fstat(descriptor)))

    def _rename(self, source: Any, target: Any) -> Any:
        if target.name != FINISHED:  # a journal that goes may lack anything
            self.renamed_early += self.lacks(source)
        return self._replace(source, target)


def _content(stat: stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    assert not disk.renamed_early


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    return make_labelled_sites(tmp_path_factory.mktemp("sites"))


def run(sites: TinySites, output: Path, **changes: Any) -> None:
    settings = sites.settings(granularity="model").model_copy(update=changes)
    sites.run_with(settings, output)


def test_the_folders_that_were_made_for_a_file_or_folder_are_on_the_disk_too(
    disk: Disk, tmp_path: Path
) -> None:
    with writing(tmp_path / "a/b/file") as partial:
        partial.write_text("x")
    with new_folder(tmp_path / "c/d/folder") as partial:
        (partial / "e").mkdir()
        (partial / "e/file").write_text("x")
    assert disk.lacks(tmp_path) == []


def test_all_products_are_on_the_disk_before_the_journal_goes(
    sites: TinySites, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    names: set[str] = set()
    lost: list[str] = []

    def remove(_journal: Any) -> None:
        names.update(path.name for path in output.iterdir())
        lost.extend(path for path in disk.lacks(output) if "out/journal" not in path)

    monkeypatch.setattr(RunJournal, "remove", remove)
    run(sites, output)
    assert names == {
        "accuracy.csv", "adapter", "environment.json", "journal", "manifest.json", "report.html",
        "results.json", "state.json",
    }  # fmt: skip
    assert lost == []


def test_a_finished_run_does_not_come_back_as_an_interrupted_one(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = RunJournal(tmp_path / "journal")
    journal.open({"run": "1"})
    lacking = {}
    with monkeypatch.context() as patch:  # at the moment at which the renamed folder is emptied
        patch.setattr(shutil, "rmtree", lambda f: lacking.update({f.name: disk.lacks(f.parent)}))
        journal.remove()
    assert lacking == {FINISHED: []}


def test_what_a_site_trains_and_measures_is_on_the_disk(
    sites: TinySites, disk: Disk, tmp_path: Path
) -> None:
    finetune = sites.settings().finetune.model_copy(update={"max_steps": 1, "logger": "none"})
    untrained = replace(sites, nodes=[node | {"adapter": ""} for node in sites.nodes])
    run(untrained, tmp_path / "out", finetune=finetune, cache=str(tmp_path / "cache"))
    for kept, count in (("adapters", 3), ("scores", 6)):
        assert len(list((tmp_path / "cache" / kept).iterdir())) == count
        assert disk.lacks(tmp_path / "cache" / kept) == []


def test_a_comparison_is_on_the_disk(sites: TinySites, disk: Disk, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    tables = [f'base = "{sites.base}"\ncache = "{tmp_path / "cache"}"\n']
    tables.append("[calibration]\nthreads = 1\nmax-length = 12\n")
    for node in sites.nodes:
        tables.append(
            "[[sites]]\n" + "".join(f'{k.replace("_", "-")} = "{v}"\n' for k, v in node.items())
        )
    file.write_text("\n".join(tables))
    lw("compare", file, "--output", tmp_path / "out", "--methods", "mean")
    assert (tmp_path / "out/comparison.html").is_file()
    assert disk.lacks(tmp_path / "out") == []


def test_the_folders_of_a_deployment_are_on_the_disk(
    sites: TinySites, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    init_coordinator()
    init_site(sites)
    assert disk.lacks(tmp_path) == []
    lw("coordinator", "renew", "--folder", "fed")
    open_site(tmp_path / "hospital-a").pin("0" * 64)
    assert disk.lacks(tmp_path / "fed") == disk.lacks(tmp_path / "hospital-a/bin") == []


def test_a_prepared_federation_is_on_the_disk(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    site = {"name": "a", "data": "a.jsonl", "held-out": "b.jsonl"}
    tables = {"name": "demo", "calibration": {"seed": 0}, "sites": [site]}
    texts = [LabelledText(f"text {i}", "a", str(i)) for i in range(9)]
    assert prepared(tables, lambda _task: texts, write_texts).is_file()
    assert disk.lacks(tmp_path / "layerweld/federations") == []
