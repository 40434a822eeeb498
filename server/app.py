"""Flower entry point of the server."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Read the run's configuration, run it, and say where its output is.

    Raises:
        LayerweldError: the run failed, and Flower lists it as such. The log's last lines are the
            cause and what to do.
    """
    from pathlib import Path

    from flwr.supercore import log

    from layerweld.errors import LayerweldError
    from layerweld.runtime.disk import make_folder, raising_storage_error
    from layerweld.settings.run import read_run_settings
    from layerweld.untrusted.text import shown
    from server.run import run

    try:
        settings = read_run_settings(context.run_config)
        output = Path(settings.output or f"runs/{settings.name}")
        # state.json begins here: nobody sees what this process prints
        with raising_storage_error(output):
            make_folder(output)
        results = run(grid, settings, settings.require_base(), output)
    except LayerweldError as error:
        log(40, "failed with exit code %d: %s", error.exit_code, shown(error, 4000))
        log(40, "next: %s", error.next_step)
        raise
    log(20, "manifest %s, output in %s", results.manifest_hash, output.resolve())
