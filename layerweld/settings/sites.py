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
"""What a site's classifier is called where the run's file does not name it."""

LEAST_ROWS = 10
"""``min-rows`` of a site that answers to somebody else and does not say itself."""


class SiteEntry(Settings):
    """One ``[[sites]]`` table, or the same keys of a Flower node configuration."""

    name: str = Field(min_length=1, pattern=f"^{SITE_NAME}$")
    """Name of the site, unique in the run; it names a folder, so letters, digits and ``._-``."""
    data: PathText = Field(min_length=1)
    """Rows to calibrate on (and to fine-tune on): JSON lines, CSV, Parquet or an image folder."""
    adapter: PathText = ""
    """PEFT LoRA folder or fully fine-tuned model folder; empty to fine-tune on ``data`` first."""
    head: PathText = ""
    """Classifier of the site's own adapter, to evaluate with: ``head.safetensors`` as layerweld
    writes it, if not in the folder that the adapter folder lies in."""
    base: PathText = ""
    """Where this site keeps the base model, if not where the run's settings say."""
    held_out: PathText = ""
    """Labelled rows to evaluate on."""
    text_column: ColumnText = ""
    """Column of this site's rows that holds the text, if not the one of ``calibration``."""
    label_column: ColumnText = ""
    """Column of this site's rows that holds the label, if not the one of ``calibration``."""
    cache: PathText = ""
    """Where this site keeps its state, if not where the run's settings say."""
    logger: Literal["", "tensorboard", "csv", "mlflow", "wandb", "none"] = ""
    """Where this site's training curves go, if not where ``finetune.logger`` says."""
    min_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Nothing is learnt from, measured over or told apart by fewer rows than this, whatever a run
    asks for: rows come in parcels of at least so many, always the same ones, and a run draws whole
    parcels. 1 is each row by itself."""
    watchdog: bool = False
    """End the process that answers a message when the message's time is over. For sites that Flower
    starts one process a message for: without it, a hung one blocks every later message."""

    def node_config(self) -> dict[str, Scalar]:
        """What it says, as Flower's node configuration of the site has it."""
        return {key: value for key, value in self.model_dump().items() if value}


def on_its_own(site: SiteEntry) -> SiteEntry:
    """The same site, where somebody else starts the runs.

    What it does not say itself is what this project has by default, and not what a run says: which
    columns are read, where curves are logged, and how few rows are too few. Paths are the caller's
    affair.
    """
    says = site.model_fields_set
    return site.model_copy(
        update={
            "text_column": site.text_column or CalibrationSettings().text_column,
            "label_column": site.label_column or CalibrationSettings().label_column,
            "logger": site.logger or FinetuneSettings().logger,
            "min_rows": site.min_rows if "min_rows" in says else LEAST_ROWS,
        }
    )


def read_run_file(file: Path) -> tuple[RunSettings, tuple[SiteEntry, ...]]:
    """Read a run's TOML file: settings, and ``[[sites]]``.

    Relative paths in it are relative to the file's folder.

    Raises:
        ConfigError: the file is missing or no TOML, a setting is unknown or wrong, or the sites
            are none, or two of one name.
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
    """Two adapters in one folder: the head that lies there is one site's, or nobody's."""
    owners: dict[Path, str] = {}
    for site in sites:
        head = Path(site.adapter).parent / HEAD if site.adapter and not site.head else None
        if head is None or not head.is_file():
            continue
        if head in owners:
            raise ConfigError(
                f"{file}: {head} lies beside the adapters of {owners[head]} and of {site.name}; "
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
