"""``--set key=value``: single settings given on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from layerweld.config import RunSettings, Scalar, read_run_settings
from layerweld.errors import ConfigError
from layerweld.methods import Method, methods_of


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
    first = methods_of(settings.model_copy(update={"methods": method}))[0]
    changed: dict[str, Scalar] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not (key.strip() and equals):
            raise ConfigError(f"--set {entry!r} is not KEY=VALUE")
        changed[_full_name(key.strip(), first, settings)] = _value(text.strip())
    return read_run_settings({**settings.flat(), **changed})


def _full_name(key: str, method: Method, settings: RunSettings) -> str:
    if "." in key:
        return key
    own = f"{method.table}."
    names = [name for name in settings.flat() if name.startswith(own)]
    if f"{own}{key}" not in names:
        known = sorted(name.removeprefix(own) for name in names)
        if method.lines:
            known += [name for name in settings.flat() if name.startswith("lines.")]
        raise ConfigError(f"unknown setting {own + key!r}; known here: {', '.join(known)}")
    return own + key


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
