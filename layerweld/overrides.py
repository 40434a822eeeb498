"""``--set key=value``: single settings given on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from layerweld.config import RunSettings, Scalar, read_run_settings
from layerweld.errors import ConfigError
from layerweld.methods import methods_of


def with_overrides(settings: RunSettings, method: str, entries: Sequence[str]) -> RunSettings:
    """The settings with some of them replaced.

    Args:
        settings: what to start from.
        method: the table of its settings is meant where a key names none.
        entries: ``density=0.1`` or ``ties.density=0.1``, values as in a TOML file; a word needs no
            quotes.

    Raises:
        ConfigError: an entry is no ``key=value``, the key is unknown, or the value is impossible;
            the message lists the known keys.
    """
    table = methods_of(settings.model_copy(update={"methods": method}))[0].table
    changed: dict[str, Scalar] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not (key.strip() and equals):
            raise ConfigError(f"--set {entry!r} is not KEY=VALUE")
        name = key.strip() if "." in key else f"{table}.{key.strip()}"
        changed[name] = _value(text.strip())
    return read_run_settings({**settings.flat(), **changed})


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
