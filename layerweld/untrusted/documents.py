"""JSON and TOML that somebody else wrote: UTF-8, of a bounded size, and no key twice."""

from __future__ import annotations

import codecs
import json
import tomllib
from pathlib import Path
from typing import Any

from layerweld.errors import LayerweldError
from layerweld.untrusted.files import contents, reading

MOST_BYTES = 16 * 2**20
"""Of a configuration. The largest in use are indices of models of 100,000 tensors, with 10 MB."""

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_json(
    file: Path, error: type[LayerweldError], remedy: str, most: int = MOST_BYTES
) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        file: to read.
        error: to raise.
        remedy: what to do if it cannot be read.
        most: bytes that it may have.

    Raises:
        LayerweldError: ``error``: it cannot be read, or does not hold an object.
    """
    text = _text(file, error, remedy, most)
    with reading(f"{file} cannot be read", remedy, error):
        found = json.loads(text, object_pairs_hook=_once)
    if not isinstance(found, dict):
        raise error(f"{file} does not hold a JSON object; {remedy}")
    return found


def read_toml(file: Path, error: type[LayerweldError]) -> dict[str, Any]:
    """The tables that a TOML file holds.

    Raises:
        LayerweldError: ``error``: it is missing, or not TOML.
    """
    remedy = "fix that line"
    text = _text(file, error, remedy, MOST_BYTES)
    with reading(f"{file} is not a TOML file", remedy, error):
        return tomllib.loads(text)


def refuse_wide(file: Path, start: bytes, error: type[LayerweldError]) -> None:
    """Refuse UTF-16, as Excel's "Unicode text" and PowerShell write it, by how a file starts.

    Raises:
        LayerweldError: ``error``, with the way out.
    """
    if start.startswith(_WIDE):
        raise error(f"{file} is UTF-16; convert it (iconv -f utf-16 -t utf-8)")


def _text(file: Path, error: type[LayerweldError], remedy: str, most: int) -> str:
    found = contents(file, error, most)
    refuse_wide(file, found, error)
    with reading(f"{file} is not UTF-8", remedy, error):
        return found.decode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two equal keys: readers differ in which of them counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found
