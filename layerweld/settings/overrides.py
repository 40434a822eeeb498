"""``--set key=value``: single settings given on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from layerweld.errors import ConfigError
from layerweld.settings.methods import methods_of, reads, setting_named
from layerweld.settings.run import RunSettings, Scalar, read_run_settings


def with_overrides(
    settings: RunSettings,
    method: str,
    entries: Sequence[str],
    options: Mapping[str, str] = MappingProxyType({}),
) -> RunSettings:
    """The settings with some of them replaced.

    Args:
        settings: what to start from.
        method: a key without a table means the table of this method.
        entries: ``density=0.1`` or ``ties.density=0.1``, values as in a TOML file; a word needs no
            quotes.
        options: by dotted key, the command's option that has put a setting into ``settings``.

    Raises:
        ConfigError: an entry is not ``key=value``, the key is unknown, or the value is impossible;
            the message lists the known keys. Or a setting is given twice, or the method does not
            read it.
    """
    methods = methods_of(settings.model_copy(update={"methods": method}))
    changed: dict[str, Scalar] = {}
    given = dict(options)
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not (key.strip() and equals):
            raise ConfigError(f"--set {entry!r} is not KEY=VALUE")
        key = key.strip()
        plain = key.replace("_", "-")
        name = plain if "." in plain else setting_named(plain, methods[0], settings)
        typed = f"--set {key}"
        if name in given:
            raise ConfigError(f"{given[name]} and {typed} are the same setting; leave one out")
        given[name] = typed
        changed[name] = _value(text.strip())
    chosen = read_run_settings({**settings.flat(), **changed})
    _refuse_without_effect(given, chosen.model_copy(update={"methods": method}))
    return chosen


def _refuse_without_effect(given: Mapping[str, str], settings: RunSettings) -> None:
    methods = methods_of(settings)
    for key, typed in given.items():
        if not any(reads(method, key, settings) for method in methods):
            names = ", ".join(method.name for method in methods)
            raise ConfigError(
                f"{typed} has no effect on {names}: leave it out, or choose a method that reads it "
                f"(`layerweld methods` lists them)"
            )


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
