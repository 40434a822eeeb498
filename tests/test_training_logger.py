"""Where training curves go, and that nothing else is written, said or sent."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from client.training.logger import training_logger
from layerweld.errors import ConfigError

EXTRAS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            find_spec(name) is None, reason=f"needs pip install 'layerweld[{name}]'"
        ),
    )
    for name in ("mlflow", "wandb")
]
MLFLOW, WANDB = EXTRAS
CURVES = {"mlflow": "mlflow.db", "wandb": "wandb/offline-run-*/run-*.wandb"}
WATCHED = """
import logging, socket, sys
def refuse(self, address):
    if self.family != socket.AF_UNIX:  # W&B's own program listens on one
        print("connects to", address, file=sys.stderr)
    return connect(self, address)
connect, socket.socket.connect = socket.socket.connect, refuse
socket.getaddrinfo = lambda *address, **_: print("looks up", address, file=sys.stderr)
from pathlib import Path
from client.training.logger import training_logger
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # as fine-tuning does
with training_logger(sys.argv[1], Path("logs", "site")) as logger:
    logger.log_metrics({"train/loss": 0.5}, step=1)
    logger.finalize("success")
"""


def log(kind: Any, folder: Path, loss: float = 0.5) -> None:
    with training_logger(kind, folder) as logger:
        logger.log_metrics({"train/loss": loss}, step=1)  # type: ignore[union-attr]
        logger.finalize("success")  # type: ignore[union-attr]


def losses(database: Path) -> list[Any]:
    with sqlite3.connect(database) as connection:
        return [value for (value,) in connection.execute("select value from metrics")]


def below(folder: Path) -> list[Any]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def no_switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither those of whoever runs the tests, nor those that a test leaves behind."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    yield
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("kind", EXTRAS)
def test_a_whole_process_writes_below_its_folder_and_says_and_sends_nothing(
    kind: Any, tmp_path: Path
) -> None:
    # A process of its own: MLflow sends nothing under pytest, and W&B only as the process ends.
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    root = str(Path(__file__).parents[1])
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WATCHED, kind],
        cwd=work,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    assert len(list((work / "logs" / "site").glob(CURVES[kind]))) == 1
    assert [path.name for path in work.iterdir()] == ["logs"]
    assert [path for path in below(home) if "layerweld" in str(path)] == []


@pytest.mark.parametrize("kind", EXTRAS)
def test_two_sites_in_one_process_are_kept_apart(kind: Any, tmp_path: Path) -> None:
    for site in ("ash", "birch"):
        log(kind, tmp_path / site)
        assert len(list((tmp_path / site).glob(CURVES[kind]))) == 1


@pytest.mark.parametrize("kind", EXTRAS)
def test_no_switch_is_left_in_the_environment(kind: Any, tmp_path: Path) -> None:
    log(kind, tmp_path / "site")
    assert not {"MLFLOW_TRACKING_URI", "WANDB_MODE"} & os.environ.keys()


@pytest.mark.parametrize("_", [MLFLOW])
def test_curves_go_where_the_sites_administrator_sends_mlflow(
    _: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{there}")
    log("mlflow", tmp_path / "site", 0.25)
    assert losses(there) == [0.25]
    assert below(tmp_path / "site") == []
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{there}"


@pytest.mark.parametrize("_", [MLFLOW])
def test_mlflow_keeps_the_curve(_: Any, tmp_path: Path) -> None:
    log("mlflow", tmp_path / "site", 0.125)
    assert losses(tmp_path / "site" / "mlflow.db") == [0.125]


@pytest.mark.parametrize("_", [WANDB])
def test_the_sites_administrator_may_switch_wandb_off(
    _: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log("wandb", tmp_path / "site")
    assert below(tmp_path / "site") == []


@pytest.mark.parametrize("_", [MLFLOW])
def test_a_place_that_takes_no_curves_is_an_error_with_a_remedy(
    _: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgres-without-a-driver://nobody@localhost/curves")
    with pytest.raises(ConfigError, match="check MLFLOW_TRACKING_URI in the site's environment"):
        log("mlflow", tmp_path / "site")


@pytest.mark.parametrize("library", ["mlflow", "wandb"])
def test_a_library_that_is_missing_is_named_with_the_command_that_installs_it(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"pip install 'layerweld\[{library}\]'"):
        log(library, tmp_path / "site")
    assert not (tmp_path / "site").exists()
