"""The Flower app of this installation as a bundle, and the hash by which sites pin it."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

from layerweld.deploy.environment import flower_environment, program
from layerweld.errors import DeployError
from layerweld.runtime.app_path import app_folder


def application_hash() -> str:
    """SHA-256 of the app bundle that ``flwr run`` makes of this installation's app.

    The bundle is the same, to the byte, wherever the same version of layerweld is installed.

    Raises:
        DeployError: Flower cannot build it.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [program("flwr"), "build", "--app", str(app_folder())],
            cwd=folder,
            env=flower_environment(Path(folder) / "flower"),
            capture_output=True,
            text=True,
            check=False,
        )
        bundles = sorted(Path(folder).glob("*.fab"))
        if done.returncode or not bundles:
            said = " ".join((done.stderr or done.stdout).split())
            raise DeployError(f"Flower cannot bundle {app_folder()}: {said}")
        return hashlib.sha256(bundles[0].read_bytes()).hexdigest()
