"""Which site this node is: from its own node configuration, or by its number in the run's file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from layerweld.errors import ConfigError
from layerweld.runtime.disk import user_cache
from layerweld.runtime.incidents import raises_here
from layerweld.settings.run import RunSettings, Scalar
from layerweld.settings.sites import SiteEntry, on_its_own, read_run_file
from layerweld.untrusted.names import below


def site_of_node(node_config: Mapping[str, Scalar], settings: RunSettings) -> SiteEntry:
    """The site that a node is.

    A node that says ``name="hospital-a" data="…"`` in its node configuration is that site, and its
    own: no run decides its paths, columns, logs or fewest samples. (Not so in the process of the
    person who started the run, ``layerweld.runtime.incidents.raising_here``: there they are one
    person's.) A node that only has a ``partition-id``, as Flower's simulation gives it, takes that
    number in the run's file: it belongs to who runs it.

    Raises:
        ConfigError: neither is there, the run has no file, or the number is larger than its list;
            or a site of its own does not say where its base model is.
    """
    own = {k: v for k, v in node_config.items() if k not in ("partition-id", "num-partitions")}
    if own:
        entry = _entry_of(own)
        return entry if raises_here() else _sovereign(entry)
    if "partition-id" not in node_config:
        raise ConfigError("this node has no `name` and `data` in its node configuration")
    number = int(node_config["partition-id"])
    if not settings.sites:
        raise ConfigError(
            "this run lists no sites, and its nodes do not say which they are: set `sites` to a "
            "TOML file with [[sites]] (`layerweld demo --prepare-only` writes the demo's)"
        )
    sites = read_run_file(Path(settings.sites))[1]
    if not 0 <= number < len(sites):
        raise ConfigError(f"node {number} of a run that lists {len(sites)} sites")
    return sites[number]


def _entry_of(own: Mapping[str, Scalar]) -> SiteEntry:
    try:
        return SiteEntry.model_validate(own)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"node configuration, {field}: {problem['msg']}") from None


def _sovereign(entry: SiteEntry) -> SiteEntry:
    if not entry.base:
        raise ConfigError(
            "the node configuration has no `base`: a site says itself where its base model lies"
        )
    return on_its_own(entry).model_copy(update={"cache": entry.cache or str(user_cache())})


def cache_folder(site: SiteEntry, settings: RunSettings) -> Path:
    """Where this site keeps adapters it trained and the state of runs."""
    chosen = site.cache or settings.cache
    return Path(chosen).expanduser() if chosen else user_cache()


class SiteRun(NamedTuple):
    """One site in one run.

    Attributes:
        site: who it is and where its things lie.
        settings: of the run.
        run: identifies the run.
    """

    site: SiteEntry
    settings: RunSettings
    run: str

    @property
    def cache(self) -> Path:
        """As :func:`cache_folder`."""
        return cache_folder(self.site, self.settings)

    @property
    def folder(self) -> Path:
        """What the site remembers of the run."""
        return below(self.cache, "runs", self.run)

    def forget(self) -> None:
        """Remove what the site remembered of the run; its adapters stay."""
        shutil.rmtree(self.folder, ignore_errors=True)


def forget_run(nodes: Iterable[Mapping[str, Scalar]], settings: RunSettings, run: str) -> None:
    """Let all sites of one process forget a finished run."""
    for node in nodes:
        SiteRun(site_of_node(node, settings), settings, run).forget()
