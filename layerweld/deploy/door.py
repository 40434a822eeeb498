"""Serve the coordinator's door: ``python -m layerweld.deploy.door FOLDER``."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import uvicorn

from layerweld import __version__
from layerweld.deploy.application import application_hash
from layerweld.deploy.coordinator import open_coordinator
from layerweld.deploy.front import Front


def main(folder: Path) -> None:
    """Serve until SIGTERM."""
    coordinator = open_coordinator(folder)
    about = {
        "application": application_hash(),
        "layerweld": __version__,
        "flwr": version("flwr"),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    certificates = coordinator.folder / "certificates"
    uvicorn.run(
        Front(f"https://{coordinator.superlink}", coordinator.inside_authority, about),
        host=coordinator.file.bind,
        port=coordinator.file.port,
        ssl_certfile=str(certificates / "server.crt"),
        ssl_keyfile=str(certificates / "server.key"),
        lifespan="off",
        ws="none",
        log_level="warning",
        server_header=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
