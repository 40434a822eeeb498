"""The list of sites of a run on one machine, as ``[[sites]]`` tables of a TOML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from layerweld.errors import ConfigError
from layerweld.settings.run import (
    CalibrationSettings,
    FinetuneSettings,
    RunSettings,
    Scalar,
    validate_settings,
)
from layerweld.settings_table import ColumnText, PathText, Settings
from layerweld.untrusted.documents import read_toml
from layerweld.untrusted.files import named_path
from layerweld.untrusted.names import SITE_NAME

HEAD = "head.safetensors"
"""The file of a site's classifier, unless the run's file names another."""

LEAST_SAMPLES = 10
"""``min-samples`` of a site whose runs somebody else starts, if it does not say otherwise."""


class SiteEntry(Settings):
    """One ``[[sites]]`` table, or the same keys of a Flower node configuration."""

    name: str = Field(min_length=1, pattern=f"^{SITE_NAME}$")
    """Name of the site, unique in the run; it names a folder, so letters, digits and ``._-``."""
    data: PathText = Field(min_length=1)
    """Samples to calibrate on, and to fine-tune on: JSON lines, CSV, Parquet or an image folder."""
    adapter: PathText = ""
    """PEFT LoRA folder or fully fine-tuned model folder; empty to fine-tune on ``data`` first."""
    head: PathText = ""
    """Classifier of the site's own adapter, to evaluate with: a ``head.safetensors`` as layerweld
    writes it. Needed only if that file is not beside the adapter folder."""
    base: PathText = ""
    """This site's folder of the base model, if it is not the one in the run's settings."""
    held_out: PathText = ""
    """Labelled samples to evaluate on."""
    text_column: ColumnText = ""
    """This site's column with the text, if it is not the one in ``calibration``."""
    label_column: ColumnText = ""
    """This site's column with the label, if it is not the one in ``calibration``."""
    cache: PathText = ""
    """This site's folder for its state, if it is not the one in the run's settings."""
    logger: Literal["", "tensorboard", "csv", "mlflow", "wandb", "none"] = ""
    """Where this site's training curves go, if not where ``finetune.logger`` says."""
    min_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Nothing is learnt from, measured over or told apart by fewer samples than this, whatever a
    run says. Samples come in parcels of at least so many, always the same ones, and a run draws
    whole parcels. 1 is each sample by itself."""
    watchdog: bool = False
    """End the process that handles a message when the message's time is over. It is for sites where
    Flower starts one process per message: there a hung one blocks every later message."""

    def node_config(self) -> dict[str, Scalar]:
        """The same keys as Flower's node configuration of the site."""
        return {key: value for key, value in self.model_dump().items() if value}


def on_its_own(site: SiteEntry) -> SiteEntry:
    """The same site for runs that somebody else starts.

    What the site does not say has this project's default, and not a run's: which columns are read,
    where curves are logged, and how few samples are too few. Paths are left to the caller.
    """
    says = site.model_fields_set
    return site.model_copy(
        update={
            "text_column": site.text_column or CalibrationSettings().text_column,
            "label_column": site.label_column or CalibrationSettings().label_column,
            "logger": site.logger or FinetuneSettings().logger,
            "min_samples": site.min_samples if "min_samples" in says else LEAST_SAMPLES,
        }
    )


def read_run_file(file: Path) -> tuple[RunSettings, tuple[SiteEntry, ...]]:
    """Read a run's TOML file: settings, and ``[[sites]]``.

    Relative paths in it are relative to the file's folder.

    Raises:
        ConfigError: the file is missing or not TOML, a setting is unknown or wrong, there are no
            sites, or two have one name.
    """
    named_path(file, "the run's file", ConfigError)
    if not file.exists():
        raise ConfigError(f"{file} does not exist")
    tables = read_toml(file, ConfigError)
    entries = tables.pop("sites", [])
    sites = site_entries(entries, file)
    settings = validate_settings(tables | {"sites": str(file.resolve())}, file)
    base = settings.base and _resolve(settings.base, "base", file)
    return settings.model_copy(update={"base": base}), sites


def site_entries(entries: Any, file: Path) -> tuple[SiteEntry, ...]:
    """Check ``[[sites]]`` tables; see :func:`read_run_file`."""
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{file} lists no sites: add a [[sites]] table for each, with name, data")
    sites = []
    for number, entry in enumerate(entries, start=1):
        try:
            site = SiteEntry.model_validate(entry)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                known = ", ".join(k.replace("_", "-") for k in SiteEntry.model_fields)
                raise ConfigError(
                    f"{file}, site {number}: unknown key {field!r}; known here: {known}"
                ) from None
            raise ConfigError(f"{file}, site {number}, {field}: {problem['msg']}") from None
        sites.append(site.model_copy(update=_resolved(site, file)))
    names = [site.name for site in sites]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{file}: two sites are called {twice!r}; every site needs its own name")
    _refuse_shared_heads(sites, file)
    return tuple(sites)


def _refuse_shared_heads(sites: Sequence[SiteEntry], file: Path) -> None:
    """Refuse two adapters beside one head: it can be one site's at most."""
    owners: dict[Path, str] = {}
    for site in sites:
        head = Path(site.adapter).parent / HEAD if site.adapter and not site.head else None
        if head is None or not head.is_file():
            continue
        if head in owners:
            raise ConfigError(
                f"{file}: {head} is beside the adapters of both {owners[head]} and {site.name}; "
                f"name each site's own with `head`"
            )
        owners[head] = site.name


def _resolved(site: SiteEntry, file: Path) -> dict[str, str]:
    paths = {
        key: getattr(site, key) for key in ("data", "adapter", "head", "base", "held_out", "cache")
    }
    return {
        key: _resolve(path, f"site {site.name}, {key}", file) for key, path in paths.items() if path
    }


def _resolve(path: str, key: str, file: Path) -> str:
    folder = named_path(file, "the run's file", ConfigError).parent
    return str(named_path(path, f"{file}, {key}", ConfigError, folder))
