"""Flower's flat ``run_config`` turned, once, into typed and frozen settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, create_model

from layerweld.errors import ConfigError
from layerweld.merging.lines import Lines
from layerweld.merging.one_round import MergeMethod
from layerweld.merging.registry import METHODS
from layerweld.settings.merge import MergeSettings
from layerweld.settings_table import (
    BatchSize,
    ColumnText,
    LineText,
    ListText,
    PathText,
    Positive,
    Rate,
    Samples,
    Seconds,
    Seed,
    Settings,
    Tokens,
    WordText,
)
from layerweld.untrusted.names import SITE_NAME
from layerweld.untrusted.text import shown

Scalar = bool | int | float | str
LostSite = Literal["wait", "abort", "continue"]
Table = TypeVar("Table", bound=Settings)


class CalibrationSettings(Settings):
    """Which samples of a site's data the statistics are taken over, and how."""

    samples: Samples = 0
    """Samples drawn at random with ``seed``; 0 uses every sample, in order."""
    max_length: Tokens = 128
    """Tokens after which a text is cut."""
    prompt_end: Annotated[str, Field(max_length=4096)] = ""
    """For causal language models: text put after each sample's text and never cut, such as
    ``"\\nTopic:"``. A class is then the word that the model continues with, and no head is
    trained."""
    batch_size: BatchSize = 32
    """Samples per forward pass."""
    seed: Seed = 0
    """Seed of the draw, of fine-tuning and of everything else that is random."""
    device: WordText = "auto"
    """Where sites run the model: ``cpu``, ``cuda:1``; ``auto`` is a GPU if there is one."""
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    """Threads per site, whatever ``OMP_NUM_THREADS`` says; use 1 if the cores are busy. On machines
    of one kind (processor, packages, the variables in ``environment.json``) the same number gives
    the same bits. On another kind the last digits differ."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a site's samples that is set aside to choose settings on. Neither fine-tuning nor
    calibration sees them."""
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of samples that may be unreadable. They are counted and skipped; more is an error."""
    text_column: ColumnText = "text"
    """Column that holds the text."""
    label_column: ColumnText = "label"
    """Column that holds the label; only fine-tuning and evaluation need it."""


class FinetuneSettings(Settings):
    """Local LoRA fine-tuning of the sites that bring data but no adapter."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 8
    """LoRA rank."""
    alpha: Positive = 16.0
    """LoRA alpha: the update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the LoRA branch."""
    targets: ListText = "all-linear"
    """Comma-separated name suffixes of the layers to adapt, or ``all-linear`` for every layer of
    the merge plan."""
    freeze_a: bool = False
    """Train ``B`` alone, on an ``A`` that is drawn from ``calibration.seed``. So ``A`` is the same
    at every site, as ``ffa-lora`` needs."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 3
    """Passes over the training samples."""
    max_steps: Annotated[int, Field(ge=-1, le=1_000_000)] = -1
    """Optimiser steps after which training ends, whatever ``epochs`` says; -1 for no limit."""
    batch_size: BatchSize = 16
    """Samples per optimiser step."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of AdamW."""
    max_length: Tokens = 64
    """Tokens after which a training text is cut."""
    accelerator: WordText = "auto"
    """Lightning's ``Trainer(accelerator=…)``."""
    precision: WordText = "32-true"
    """Lightning's ``Trainer(precision=…)``."""
    logger: Literal["tensorboard", "csv", "mlflow", "wandb", "none"] = "tensorboard"
    """Where training curves go, inside the site's own folder. ``mlflow`` and ``wandb`` need the
    extra of the same name."""


class EvaluateSettings(Settings):
    """Held-out evaluation at the sites."""

    enabled: bool = True
    """Evaluate, if the sites have labelled held-out samples and a head."""
    split: Literal["held-out", "validation"] = "held-out"
    """What to evaluate on; ``validation`` is what ``calibration.validation`` set aside."""
    samples: Samples = 0
    """How many of them, drawn at random with ``calibration.seed``; 0 uses every sample."""
    batch_size: BatchSize = 64
    """Samples per forward pass."""
    max_length: Tokens = 64
    """Tokens after which a text is cut."""


def _with_tables_of_methods(settings: type[Table]) -> type[Table]:
    """Add a table for each method that has settings of its own, named like the method."""
    own = {m.table: m.settings for m in METHODS.values() if m.settings}
    tables: dict[str, Any] = {k.replace("-", "_"): (table, table()) for k, table in own.items()}
    about: dict[str, Any] = {"__module__": settings.__module__, "__doc__": settings.__doc__}
    return create_model(settings.__name__, __base__=settings, **about, **tables)


@_with_tables_of_methods
class RunSettings(Settings):
    """Everything a run's behaviour depends on; the same at the server and at every site."""

    base: PathText = ""
    """Folder of the base model."""
    base_name: LineText = ""
    """What cards and adapter configurations call the base model, such as its name on a hub; empty
    for the name of its folder."""
    sites: PathText = ""
    """TOML file that lists the sites of one machine; empty if each node says which site it is."""
    min_sites: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Sites that must be connected before the handshake; with fewer no run continues."""
    methods: ListText = "chain"
    """Comma-separated names of ``layerweld methods``; the first one's merge is written out.
    ``chain`` is whichever ``merge.granularity`` says."""
    output: PathText = ""
    """Folder to create at the server; empty for ``runs/<name>`` below the working directory."""
    cache: PathText = ""
    """Folder for what sites must remember between messages; empty for the user's cache folder."""
    name: Annotated[str, Field(pattern=f"^{SITE_NAME}$")] = "run"
    """Name of the run, for humans and for resuming."""
    timeout: Seconds = 3600.0
    """Seconds that a site may take for one message; then it is asked again."""
    lost_site: LostSite = "wait"
    """What to do about a site that fails or does not reply: ``wait`` for it until ``deadline`` and
    then stop, to be resumed; ``abort`` at once; ``continue`` without it from ``deadline`` on."""
    deadline: Seconds = 86400.0
    """Seconds after which a round no longer waits for a site."""
    merge: MergeSettings = MergeSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    lines: Lines = Lines()

    def table(self, kind: type[Table]) -> Table:
        """The table of this kind, such as that of one method: ``table(Ties)``."""
        tables = (getattr(self, name) for name in type(self).model_fields)
        return next(table for table in tables if isinstance(table, kind))

    def of_method(self, name: str) -> MergeMethod:
        """The table of a method that merges the updates themselves; the table does the merging.

        Raises:
            ConfigError: there is no such method.
        """
        table = getattr(self, name.replace("-", "_"), None)
        if isinstance(table, MergeMethod):
            return table
        raise ConfigError(f"{name!r} has no settings of its own; `layerweld methods` lists all")

    def require_base(self) -> str:
        """Folder of the base model.

        Raises:
            ConfigError: none is set.
        """
        if self.base:
            return self.base
        raise ConfigError(
            f"{self.sites or 'this run'} names no base model; set `base`, above the tables: the "
            f"folder of the model that the sites fine-tune, or have fine-tuned. For `flwr run .` "
            f"`layerweld demo --prepare-only` prints the demo's settings"
        )

    def flat(self) -> dict[str, Scalar]:
        """As Flower's ``run_config``: dotted keys, scalar values."""
        return {
            f"{table}.{key}" if table else key: value
            for table, entries in self._tables().items()
            for key, value in entries.items()
        }

    def digest(self) -> str:
        """SHA-256 over what decides the merged bits (not over paths, names or time limits)."""
        about = {table: self._tables()[table] for table in ("merge", "calibration")}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _tables(self) -> dict[str, dict[str, Scalar]]:
        everything: dict[str, Any] = self.model_dump(by_alias=True)
        tables: dict[str, dict[str, Scalar]] = {"": {}}
        for key, value in everything.items():
            if isinstance(value, dict):
                tables[key] = value
            else:
                tables[""][key] = value
        return tables


def read_run_settings(run_config: Mapping[str, Scalar]) -> RunSettings:
    """Check every key of a run configuration and give it its type.

    Raises:
        ConfigError: a key is unknown, has the wrong type or an impossible value; the message names
            the key, the value and what is possible.
    """
    nested: dict[str, Any] = {}
    for key, value in run_config.items():
        table, _, entry = key.rpartition(".")
        (nested.setdefault(table, {}) if table else nested)[entry] = value
    return validate_settings(nested)


def validate_settings(nested: Mapping[str, Any], file: Path | None = None) -> RunSettings:
    """As :func:`read_run_settings`, from nested tables as a TOML file has them.

    Args:
        nested: the tables.
        file: that they come from, for the message.
    """
    try:
        return RunSettings.model_validate(nested)
    except ValidationError as error:
        where = f"{file}: " if file else ""
        raise ConfigError(where + "; ".join(_problem(e) for e in error.errors())) from None


def _problem(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "settings"
    if error["type"] == "extra_forbidden":
        return f"unknown setting {shown(where)!r}; known here: {', '.join(_known(error['loc']))}"
    return f"{shown(where)} = {shown(repr(error['input']))}: {error['msg']}"


def _known(location: tuple[str | int, ...]) -> list[str]:
    settings: type[BaseModel] = RunSettings
    if len(location) > 1:
        settings = type(getattr(RunSettings(), str(location[0]).replace("-", "_")))
    return sorted(field.alias or name for name, field in settings.model_fields.items())
