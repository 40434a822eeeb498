"""The merge methods by name: a plain table."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from layerweld.config import Granularity, RunSettings
from layerweld.errors import ConfigError


@dataclass(frozen=True)
class Method:
    """One way to make one model of the sites' models.

    Attributes:
        name: on the command line, in settings and in files.
        label: for humans.
        granularity: of the chain that plays it; None for methods that only average updates.
        source: the paper.
    """

    name: str
    label: str
    granularity: Granularity | None
    source: str


_ALL = (
    Method("com", "Chain of Merges", "group", "Buzzega et al. 2025, arXiv:2508.21421"),
    Method("regmean++", "RegMean++", "block", "Nguyen et al. 2025, arXiv:2508.03121"),
    Method("regmean", "RegMean", "model", "Jin et al. 2023, arXiv:2212.09849"),
    Method("jacobi", "Jacobi rounds", "jacobi", "Chen et al. 2025 (IterIS), arXiv:2411.15231"),
    Method("task-arithmetic", "Task arithmetic", None, "Ilharco et al. 2023, arXiv:2212.04089"),
    Method("mean", "Mean of the updates", None, "McMahan et al. 2017, arXiv:1602.05629"),
)

METHODS = MappingProxyType({method.name: method for method in _ALL})
"""Every method, by name, in the order in which tables show them."""


def method_named(name: str, settings: RunSettings) -> Method:
    """Look a method up; ``chain`` is the one of the run's ``merge.granularity``.

    Raises:
        ConfigError: there is no such method.
    """
    if name == "chain":
        return next(m for m in _ALL if m.granularity == settings.merge.granularity)
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; known: chain, {', '.join(METHODS)}")
    return METHODS[name]


def methods_of(settings: RunSettings) -> tuple[Method, ...]:
    """The methods of a run, in order, each once."""
    names = [name.strip() for name in settings.methods.split(",") if name.strip()]
    if not names:
        raise ConfigError("methods is empty: name at least one, or `chain`")
    return tuple(dict.fromkeys(method_named(name, settings) for name in names))


def settings_for(method: str, settings: RunSettings) -> RunSettings:
    """The run's settings with the granularity that the method stands for."""
    granularity = method_named(method, settings).granularity
    if granularity is None:
        return settings
    merge = settings.merge.model_copy(update={"granularity": granularity})
    return settings.model_copy(update={"merge": merge})
