"""Image files as pixels: a few formats, of a bounded size, one picture per file, in 8 bits."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from layerweld.errors import DataError
from layerweld.untrusted.files import contents, reading

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
"""Suffixes of the image files that are read."""

OTHER_SUFFIXES = frozenset({
    ".avif", ".dcm", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".pgm", ".ppm", ".svg",
    ".tga", ".tif", ".tiff",
})  # fmt: skip
"""Suffixes of images that are not read, and must be named instead of skipped silently."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MOST_PIXELS = 2**26  # 8192 x 8192: 0.2 GB as RGB
_LONGEST_STRIP = 100  # length to width: a processor that scales the short side multiplies both
_MOST_BYTES = 256 * 2**20  # of a file
_MOST_SCANS = 100  # of a progressive JPEG, which has about ten; each costs time for all pixels
_START_OF_SCAN = b"\xff\xda"


def read_image(file: Path) -> Image.Image:
    """The picture in a file as RGB.

    Grey values of 16 bits keep their upper 8, as Pillow does with coloured ones.

    Raises:
        DataError: the file does not hold a whole picture of a supported kind and size.
    """
    return _rgb(_decoded(file))


def why_unreadable(file: Path) -> str:
    """Why :func:`read_image` cannot read a file; empty if it can."""
    if file.suffix.lower() not in SUFFIXES:
        return f"{file.suffix} is not supported; convert it to PNG"
    try:
        _decoded(file, only_checked=True)
    except DataError as error:
        return str(error).removeprefix(f"{file} ")
    return ""


def images_in(files: Iterable[Path]) -> list[Path]:
    """Image files of supported kinds and others, in order, without hidden ones."""
    known = SUFFIXES | OTHER_SUFFIXES
    return sorted(f for f in files if f.suffix.lower() in known and f.name[0] != ".")


def _decoded(file: Path, *, only_checked: bool = False) -> Image.Image:
    with reading(f"{file} does not hold a whole image", "fix or remove it", DataError):
        content = contents(file, DataError, _MOST_BYTES)
        if content.count(_START_OF_SCAN) > _MOST_SCANS and content[:2] == b"\xff\xd8":
            raise DataError(
                f"{file} holds a JPEG with more scans than any camera writes; remove it"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage is refused, or does not matter
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _check_header(file, image)
                if only_checked:
                    image.draft("RGB", (64, 64))  # a JPEG is decoded at an eighth of the cost
                image.load()
                return image


def _check_header(file: Path, image: Any) -> None:
    width, height = image.size
    if width * height > _MOST_PIXELS or max(width, height) > _LONGEST_STRIP * min(width, height):
        raise DataError(
            f"{file} holds an image of {width} x {height} pixels; cut or scale it to at most "
            f"{_MOST_PIXELS:,} pixels, and a strip to {_LONGEST_STRIP} to 1"
        )
    # The further pictures of a camera's file (MPO) are previews of its first.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise DataError(f"{file} holds an animation; save one picture of it in a file")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
