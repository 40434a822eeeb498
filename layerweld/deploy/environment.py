"""The environment of Flower's programs: nothing calls out, and nothing is installed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from layerweld.errors import DeployError
from layerweld.runtime.app_path import app_folder

SWITCHES = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}
SUPEREXEC = (sys.executable, "-P", str(app_folder() / "client" / "superexec.py"))
"""Replaces Flower's own ``flower-superexec``, and takes the same arguments."""


def programs() -> Path:
    """The folder of this Python's programs; Flower's are installed there."""
    return Path(sys.executable).parent


def flower_environment(home: Path, *first: Path) -> dict[str, str]:
    """This process's environment with all switches set.

    Args:
        home: Flower's home, inside the coordinator's or site's own folder.
        first: folders of programs that go before Flower's own.
    """
    path = os.pathsep.join([*map(str, first), str(programs()), os.environ.get("PATH", "")])
    return os.environ | SWITCHES | {"FLWR_HOME": str(home), "PATH": path}


def program(name: str) -> str:
    """The absolute path of one of Flower's programs.

    Raises:
        DeployError: it is not installed beside this Python.
    """
    found = shutil.which(name, path=str(programs())) or shutil.which(name)
    if not found:
        raise DeployError(f"`{name}` is not installed; `pip install layerweld` brings it")
    return found
