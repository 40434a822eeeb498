"""The methods of a run, and what they read of its settings."""

from __future__ import annotations

from dataclasses import replace

from layerweld.errors import ConfigError
from layerweld.merging.chain import Mats
from layerweld.merging.method import CHAIN, UPDATES, Method, Quantity
from layerweld.merging.registry import METHODS
from layerweld.settings.run import RunSettings
from layerweld.settings.typos import listed

_LINES = "+lines"
TABLES = {"lines"}.union(*(method.tables for method in METHODS.values()))
"""All tables of settings that only some methods read."""


def method_named(name: str, settings: RunSettings) -> Method:
    """Look a method up.

    ``chain`` is the one of the run's ``merge.granularity``; ``ties+lines`` is TIES with LiNeS as a
    last step, and so for every method that merges the updates themselves.

    Raises:
        ConfigError: there is no such method, or LiNeS cannot follow it.
    """
    if name == "chain":
        wanted = settings.merge.granularity
        return next(m for m in METHODS.values() if m.granularity == wanted)
    plain = name.removesuffix(_LINES)
    if plain not in METHODS:
        raise ConfigError(f"unknown method {plain!r}; known: {listed(('chain', *METHODS), plain)}")
    method = METHODS[plain]
    if plain == name:
        return method
    if method.kind is not UPDATES:
        raise ConfigError(
            f"{name!r}: LiNeS takes its scale from the sites' updates, which {plain} does not "
            f"send; put `+lines` after a method that needs no samples"
        )
    return replace(method, name=name, label=f"{method.label} + LiNeS", lines=True)


def methods_of(settings: RunSettings) -> tuple[Method, ...]:
    """The methods of a run, in order, each once."""
    names = [name.strip() for name in settings.methods.split(",") if name.strip()]
    if not names:
        raise ConfigError("methods is empty: name at least one, or `chain`")
    return tuple(dict.fromkeys(method_named(name, settings) for name in names))


def settings_for(method: Method, settings: RunSettings) -> RunSettings:
    """The run's settings with those that the name of a chain stands for."""
    if method.kind is not CHAIN:
        return settings
    stands_for = {"granularity": method.granularity, **method.stands_for}
    merge = settings.merge.model_copy(update=stands_for)
    return settings.model_copy(update={"merge": merge})


def iterations_of(method: Method, settings: RunSettings) -> int:
    """Steps of conjugate gradients in place of an exact solution; 0 where a chain has that."""
    return settings.table(Mats).iterations if method.settings is Mats else 0


def sent_by(method: Method, settings: RunSettings) -> tuple[Quantity, ...]:
    """What leaves a site in a run; for a ridge towards the mean of the updates these go as well."""
    if method.kind is CHAIN and settings_for(method, settings).merge.anchor == "mean":
        return (*method.sends, "ΔW")
    return method.sends


def measuring_shift(settings: RunSettings) -> tuple[Method, ...]:
    """The methods of a run after whose merge every site measures eq. 8, by layer group."""
    last = {"off": 0, "first": 1, "all": None}[settings.merge.covariate_shift]
    return tuple(method for method in methods_of(settings)[:last] if method.kind is CHAIN)


def setting_named(key: str, method: Method, settings: RunSettings) -> str:
    """The dotted name of a setting, given without its table: of the method's own table first.

    Raises:
        ConfigError: none of the method's tables has it.
    """
    known = sorted(settings.flat())
    names = [name for table in method.tables for name in known if name.startswith(f"{table}.")]
    for name in names:
        if name.partition(".")[2] == key:
            return name
    own = f"{method.tables[0]}."
    possible = listed([name.removeprefix(own) for name in names], key)
    raise ConfigError(f"unknown setting {own + key!r}; known here: {possible}")


def reads(method: Method, key: str, settings: RunSettings) -> bool:
    """Whether a setting has a say in what the method makes; every one outside of merging has.

    Args:
        method: as :func:`method_named` gives it.
        key: dotted, ``ties.density``.
        settings: all that the run has set.
    """
    table = key.partition(".")[0]
    if table not in TABLES or key == "merge.rank":
        return True
    if table not in method.tables:
        return False
    if method.lines and key == f"{method.table}.scaling":
        return False  # LiNeS takes its place
    if key == "merge.rounds":
        return method.granularity == "jacobi"
    return settings_for(method, settings).flat()[key] == settings.flat()[key]
