"""Folders of images as datasets: which files are read, and what is said of the others."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.images import read_image
from client.data.samples import read_dataset
from layerweld.errors import DataError
from tests.test_data import LENIENT, STRICT


def write_image(file: Path, colour: str = "red") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), colour).save(file)
    return file


def test_sub_folders_of_images_are_classes(tmp_path: Path) -> None:
    files = [write_image(tmp_path / name) for name in ("cat/b.png", "cat/a.jpg", "dog/c.webp")]
    dataset = read_dataset(tmp_path, STRICT, reads_images=True)
    assert list(dataset.inputs) == sorted(files)
    assert (dataset.classes, dataset.labels) == (("cat", "dog"), (0, 0, 1))


def test_a_flat_folder_of_images_has_no_labels(tmp_path: Path) -> None:
    files = [write_image(tmp_path / name) for name in ("b.bmp", "a.png")]
    (tmp_path / "notes.txt").write_text("not an image")
    dataset = read_dataset(tmp_path, STRICT, reads_images=True)
    assert (list(dataset.inputs), dataset.labels) == (sorted(files), None)


def test_the_digest_of_images_is_over_their_bytes(tmp_path: Path) -> None:
    colours = ("red", "blue", "red")
    folders = [write_image(tmp_path / str(i) / "a.png", c).parent for i, c in enumerate(colours)]
    red, blue, again = (
        read_dataset(folder, STRICT, reads_images=True).digest for folder in folders
    )
    assert red == again != blue


def test_an_image_that_cannot_be_decoded_is_counted_and_skipped(tmp_path: Path) -> None:
    whole = write_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(whole.read_bytes()[:-30])
    assert read_dataset(tmp_path, LENIENT, reads_images=True).skipped == 1
    with pytest.raises(DataError, match=r"1 of 2 .*file b.png: .*`calibration.max-unreadable`"):
        read_dataset(tmp_path, STRICT, reads_images=True)


def test_images_beside_class_folders_are_an_error(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "cat" / "b.png")
    with pytest.raises(DataError, match="move the images into a sub-folder"):
        read_dataset(tmp_path, STRICT, reads_images=True)


def test_images_of_other_kinds_are_counted_and_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"1 of 2 .* file b.tif: .tif is not supported; convert"):
        read_dataset(tmp_path, STRICT, reads_images=True)
    assert read_dataset(tmp_path, LENIENT, reads_images=True).skipped == 1


def test_an_animation_is_no_image(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"file a.webp: holds an animation"):
        read_dataset(tmp_path, STRICT, reads_images=True)


def test_grey_values_of_16_bits_are_those_of_8(tmp_path: Path) -> None:
    deep = np.arange(0, 65_000, 1000, dtype=np.uint16).reshape(5, 13)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png"))[..., 0], deep >> 8)
