"""Run server and sites in this process, one message at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from layerweld.report.comparison.results import Comparison
from layerweld.report.results import RunResults
from layerweld.runtime.app_path import add_app_to_path
from layerweld.runtime.incidents import raising_here
from layerweld.settings.comparison import ComparisonSettings
from layerweld.settings.run import RunSettings, Scalar

Nodes = Sequence[Mapping[str, Scalar]]
"""One node configuration per site."""


def run_in_process(settings: RunSettings, nodes: Nodes, output: Path) -> RunResults:
    """Merge, evaluate where the sites can, and write the output folder.

    Args:
        settings: of the run.
        nodes: the sites.
        output: folder to create; one that holds the journal of an interrupted run is resumed.
    """
    add_app_to_path()
    from client.app import app
    from server.in_process import InProcessGrid
    from server.run import run

    grid = InProcessGrid(app, nodes, settings)
    return run(grid, settings, settings.require_base(), output)


def compare_in_process(
    settings: ComparisonSettings, nodes: Nodes, kept: Path, on_known: Callable[[Comparison], None]
) -> Comparison:
    """Run every method once per seed; the sites forget each run once it is over.

    Args:
        settings: what is compared, and how.
        nodes: the sites.
        kept: folder of results; what it has under the same conditions is not run again.
        on_known: called after each method, with all that is known by then.
    """
    add_app_to_path()
    from client.app import app
    from client.site import forget_run
    from server.comparison import compare
    from server.in_process import InProcessGrid
    from server.kept_results import KeptResults

    def open_grid(settings: RunSettings) -> InProcessGrid:
        return InProcessGrid(app, nodes, settings)

    def forget(settings: RunSettings, run: str) -> None:
        with raising_here():
            forget_run(nodes, settings, run)

    return compare(settings, open_grid, KeptResults(kept), forget, on_known)
