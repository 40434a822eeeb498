"""What benchmarks are made of: files that parse, tasks that exist, weights that are checked."""

import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from client.data.samples import read_dataset
from experiments import backbones, prepare
from experiments.benchmark_runs import benchmark, fine_tuned_otherwise
from experiments.onnx_weights import read_onnx
from experiments.tasks import images, texts
from experiments.tasks.debian import debian_file
from experiments.tasks.numpy_pickle import load_arrays
from layerweld.demo.splits import drawn
from layerweld.errors import ConfigError, DataError
from layerweld.model.discover import discover_plan
from layerweld.settings.run import CalibrationSettings, RunSettings
from layerweld.settings.sites import read_run_file
from tests.tiny_encoders import save_image_base
from tests.tiny_peft import save_base

_EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.mark.parametrize("file", sorted(_EXPERIMENTS.glob("*/*.toml")), ids=lambda f: f.stem)
def test_every_run_file_parses_and_holds_out_samples_at_every_site(file: Any) -> None:
    settings, sites = read_run_file(file)
    assert settings.name == file.stem
    assert len(sites) >= 4
    assert all(site.held_out and site.held_out != site.name for site in sites)


@pytest.mark.parametrize(
    ("name", "readers", "fewest"),
    [("text", texts.READERS, 8), ("vision", images.READERS, 6), ("language", texts.READERS, 4)],
)
def test_benchmarks_name_tasks_of_their_modality(name: str, readers: Any, fewest: int) -> None:
    _, sites = read_run_file(_EXPERIMENTS / "benchmarks" / f"{name}.toml")
    tasks = {site.name for site in sites}
    assert len(tasks) >= fewest
    assert tasks <= set(readers)
    assert not set(texts.READERS) & set(images.READERS)


def test_an_onnx_file_is_read_without_its_package(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    packed = b"\x0a\x02\x02\x03"  # dims, packed
    tensor = packed + b"\x10\x01" + _field(8, b"layer.weight") + _field(9, weight.tobytes())
    node = _field(1, b"x") + _field(1, b"layer.weight") + _field(2, b"y") + _field(4, b"MatMul")
    (tmp_path / "model.onnx").write_bytes(_field(7, _field(1, node) + _field(5, tensor)))
    tensors, nodes = read_onnx(tmp_path / "model.onnx")
    assert np.array_equal(tensors["layer.weight"], weight)
    assert nodes == [("MatMul", ("x", "layer.weight"), ("y",))]


def test_weights_other_than_the_pinned_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.onnx").write_bytes(b"not the pinned bytes")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"requirements-benchmarks\.txt pins"):
        backbones._pinned("some_weights", "model.onnx", "0" * 64)


def _field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("text", lambda folder: save_base("bert", folder)),
        ("vision", save_image_base),
        ("language", lambda folder: save_base("llama", folder)),
    ],
)
def test_attention_alone_is_four_layers_a_block_of_each_benchmarks_model(
    name: str, model: Any, tmp_path: Path
) -> None:
    settings = RunSettings(name=name)
    chosen, kind = fine_tuned_otherwise(settings, attention=True, frozen_a=False)
    plan = discover_plan(model(tmp_path / "base").backbone)
    found = [s for s in plan.layer_names if s.endswith(tuple(chosen.finetune.targets.split(",")))]
    assert kind == "-attention"
    assert len(found) == 4 * len(plan.blocks)


def test_a_missing_debian_package_names_both_ways_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get install .* wordnet-base.*dpkg-deb -x"):
        debian_file("wordnet-base", "/usr/share/no-such-place/data.noun")


def test_an_unknown_benchmark_names_the_known_ones() -> None:
    app = typer.Typer()
    app.command()(prepare.main)
    result = CliRunner().invoke(app, ["weather"])
    assert result.exit_code == 2
    assert all(name in result.output for name in ("text", "vision", "language"))


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder in which Debian packages can be unpacked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "layerweld" / "debian"


def put(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def put_clothes(unpacked: Path, count: int = 40) -> None:
    pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        folder = unpacked / "usr/share/datasets/fashion-mnist"
        put(folder / f"{part}-images-idx3-ubyte.gz", gzip.compress(bytes(16) + pixels.tobytes()))
        put(folder / f"{part}-labels-idx1-ubyte.gz", gzip.compress(bytes(8) + labels.tobytes()))


def test_definitions_are_filed_under_what_they_define(unpacked: Path) -> None:
    lines = [
        "  1 a licence, not an entry",
        '00001 05 n 01 cat 0 000 | a small animal that purrs; "the cat sat"  ',
        "00002 03 n 01 entity 0 000 | that which is perceived to exist  ",
        "00003 13 n 01 pie 0 000 | a dish baked in pastry  ",
    ]
    put(unpacked / "usr/share/wordnet/data.noun", "\n".join(lines).encode())
    assert [(e.text, e.label) for e in texts.READERS["gloss"]()] == [
        ("a small animal that purrs", "animal"),
        ("a dish baked in pastry", "food"),
    ]


def test_dictionary_entries_lose_their_subject_which_is_the_label(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "_RAREST_SUBJECT", 1)
    entries = [
        b"baz\n\n   <jargon> One of the {metasyntactic} words that hackers like.\n",
        b"qux\n\n   No subject is printed in this entry, however long it is.\n",
    ]
    put(unpacked / "usr/share/dictd/foldoc.dict.dz", gzip.compress(b"".join(entries)))
    digits = texts._DIGITS
    first, second = (len(entry) for entry in entries)
    index = f"baz\tA\t{digits[first // 64]}{digits[first % 64]}\n"
    index += f"qux\t{digits[first // 64]}{digits[first % 64]}\t{digits[second // 64]}"
    index += f"{digits[second % 64]}\nbazz\tA\t{digits[first // 64]}{digits[first % 64]}\n"
    put(unpacked / "usr/share/dictd/foldoc.index", index.encode())
    (entry,) = texts.READERS["foldoc"]()
    assert entry.label == "jargon"
    assert entry.text == "baz One of the metasyntactic words that hackers like."


def test_images_become_folders_of_their_classes_and_their_splits_are_disjoint(
    unpacked: Path, tmp_path: Path
) -> None:
    put_clothes(unpacked)
    clothes = list(images.READERS["fashion"]())
    read = {}
    for split in ("data", "held-out"):
        chosen = drawn(clothes, split, 0, 0)
        images.write_images(tmp_path / split, chosen)
        dataset = read[split] = read_dataset(
            tmp_path / split, CalibrationSettings(), reads_images=True
        )
        assert dataset.labels
        names = sorted(dataset.classes[i] for i in dataset.labels)
        assert names == sorted(image.label for image in chosen)
    assert len(read["data"]) + len(read["held-out"]) == 80
    assert read["data"].classes == read["held-out"].classes
    assert len(read["data"].classes) == 10
    with Image.open(read["data"].inputs[0]) as image:
        assert (image.size, image.mode) == ((28, 28), "RGB")


def test_every_seed_of_a_benchmark_is_a_federation_of_its_own(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_clothes(unpacked, 200)
    monkeypatch.setattr(backbones, "folder", lambda _name: "/base")
    monkeypatch.setattr(images, "READERS", dict.fromkeys(images.READERS, images.READERS["fashion"]))
    first, second = (benchmark("vision", seed) for seed in (0, 1))
    assert first.settings.sites != second.settings.sites
    assert [of.settings.calibration.seed for of in (first, second)] == [0, 1]
    assert first.settings.base == "/base"
    assert len(first.nodes) == first.settings.min_sites == 6
    _, sites = read_run_file(Path(first.settings.sites))
    assert all(Path(site.data).is_dir() and Path(site.held_out).is_dir() for site in sites)


def test_emoji_are_listed_by_group_without_tones_and_sequences(tmp_path: Path) -> None:
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
    found = list(images._emoji_by_group(tmp_path / "emoji-test.txt"))
    assert found == [("\U0001f354", "Food & Drink")]


def test_letters_are_drawn_the_same_way_every_time() -> None:
    first, again = (next(iter(images.READERS["glyphs"]())) for _ in range(2))
    assert first.label == "A"
    assert first.draw().tobytes() == again.draw().tobytes()


def test_a_pickle_that_is_more_than_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "arrays.gz").write_bytes(gzip.compress(pickle.dumps(np.arange(3))))
    assert load_arrays(tmp_path / "arrays.gz").tolist() == [0, 1, 2]
    (tmp_path / "evil.gz").write_bytes(gzip.compress(pickle.dumps(os.getcwd)))
    with pytest.raises(DataError, match=r"wants to call posix\.getcwd"):
        load_arrays(tmp_path / "evil.gz")
