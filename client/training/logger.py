"""Where the curves of local fine-tuning go: into the site's own folder.

MLflow and W&B can send them elsewhere. Only the site's administrator can ask for that, with their
own switches in the site's environment (``MLFLOW_TRACKING_URI``, ``WANDB_MODE``): no setting of a
run, which the coordinator decides, reaches them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from layerweld.errors import ConfigError

Kind = Literal["tensorboard", "csv", "mlflow", "wandb", "none"]
_PROJECT = "layerweld"  # what MLflow calls an experiment
_OPT_OUTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # else importing it calls config.mlflow-telemetry.io
    "WANDB_ERROR_REPORTING": "false",  # else even an offline run calls W&B as the process ends
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "WANDB_SILENT": "true",
}


@contextmanager
def training_logger(kind: Kind, folder: Path) -> Iterator[Logger | Literal[False]]:
    """Lightning's logger of one training run, closed on the way out.

    Args:
        kind: as in ``finetune.logger``.
        folder: of this run's logs alone; created when something is written.

    Raises:
        ConfigError: the library is not installed, or the place that the site's environment sends
            curves to does not accept them.
    """
    match kind:
        case "tensorboard":
            yield TensorBoardLogger(folder.parent, name=folder.name, version="")
        case "csv":
            yield CSVLogger(folder.parent, name=folder.name, version="")
        case "mlflow":
            with _mlflow(folder) as logger:
                yield logger
        case "wandb":
            with _wandb(folder) as logger:
                yield logger
        case "none":
            yield False


@contextmanager
def _mlflow(folder: Path) -> Iterator[Logger]:
    _prepare("mlflow")
    from mlflow.exceptions import MlflowException

    folder.mkdir(parents=True, exist_ok=True)
    elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        with _told(MlflowException, "MLFLOW_TRACKING_URI"):
            logger = MLFlowLogger(
                os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
                run_name=folder.name,
                tracking_uri=elsewhere or f"sqlite:///{folder.absolute() / 'mlflow.db'}",
                artifact_location=None if elsewhere else str(folder.absolute() / "artifacts"),
            )
            _ = logger.experiment  # opens the run: a failure here is not the training's fault
        yield logger
    finally:  # Lightning writes its own address there; the next run would take it for a setting
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if elsewhere:
            os.environ["MLFLOW_TRACKING_URI"] = elsewhere


@contextmanager
def _wandb(folder: Path) -> Iterator[Logger]:
    _prepare("wandb")
    import wandb

    folder.mkdir(parents=True, exist_ok=True)  # W&B goes to /tmp if it is missing
    with _told(wandb.Error, "WANDB_MODE and WANDB_API_KEY"):
        wandb.setup()  # reads WANDB_SILENT: else Lightning's way of calling W&B is commented on
        logger = WandbLogger(
            folder.name,
            save_dir=folder,
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            mode=os.environ.get("WANDB_MODE", "offline"),  # `offline=True` would set the switch
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
        _ = logger.experiment
    failed = 1
    try:
        yield logger
        failed = 0
    finally:  # else the next site in this process would continue this site's run
        logger.experiment.finish(exit_code=failed)


def _prepare(library: str) -> None:
    if find_spec(library) is None:
        raise ConfigError(
            f"finetune.logger = {library!r} needs a library that is not installed here: "
            f"pip install 'layerweld[{library}]'"
        )
    for variable, value in _OPT_OUTS.items():
        os.environ.setdefault(variable, value)


@contextmanager
def _told(error: type[Exception], switches: str) -> Iterator[None]:
    try:
        yield
    except error as problem:
        raise ConfigError(
            f"the training curves cannot be written: {problem}; check {switches} in the site's "
            f"environment, or unset them to keep the curves in the site's folder"
        ) from None
