"""Flower entry point of the server."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Read the run's configuration, play the run, and say where its output is."""
    from pathlib import Path

    from flwr.supercore import log

    from layerweld.config import read_run_settings
    from server.run import play

    settings = read_run_settings(context.run_config)
    output = Path(settings.output or f"runs/{settings.name}")
    results = play(grid, settings, settings.base or demo_base(), output)
    log(20, "manifest %s, output in %s", results.manifest_hash, output.resolve())


def demo_base() -> str:
    """Folder of the demo's base model."""
    from layerweld.demo import base_folder

    return str(base_folder())
