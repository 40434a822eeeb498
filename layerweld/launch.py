"""Find the Flower app and play it in this process, the way Flower itself would load it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerweld.runtime.incidents import raising_here
from layerweld.settings.run import RunSettings, Scalar


def app_folder() -> Path:
    """The folder with ``server``, ``client`` and ``strategies``: in the wheel, or the checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / "app"
    return packaged if packaged.is_dir() else package.parent


def play_in_process(
    settings: RunSettings, nodes: Sequence[Mapping[str, Scalar]], base: str, output: Path
) -> Any:
    """Play server and sites in this process, one message at a time.

    The app's folders are no installed packages: they are put on the path and imported by name,
    as Flower does with an app bundle.

    Args:
        settings: of the run.
        nodes: one node configuration per site.
        base: folder of the base model.
        output: folder to create.

    Returns:
        The ``layerweld.report.run_results.RunResults`` of the run.
    """
    module = app_module
    grid = module("server.in_process").InProcessGrid(module("client.app").app, nodes, settings)
    return module("server.run").play(grid, settings, base, output)


def compare_in_process(
    settings: RunSettings,
    nodes: Sequence[Mapping[str, Scalar]],
    base: str,
    seeds: Sequence[int],
    budget: int,
    kept: Path,
    on_known: Callable[[Any], None],
    at_seed: Callable[[RunSettings], RunSettings] = lambda settings: settings,
) -> Any:
    """Play every method of the run once per seed.

    Args:
        settings: of the run; ``methods`` says what is compared.
        nodes: one node configuration per site.
        base: folder of the base model.
        seeds: see ``server.comparison.compare``.
        budget: candidates per method; 1 is the published defaults.
        kept: folder of what was played; the same under the same conditions is not played again.
        on_known: called after each method, with all that is known by then.
        at_seed: turns the settings of one seed into those that its sites are played with, where
            they differ in more than seeds.

    Returns:
        The ``layerweld.report.comparison_results.Comparison``.
    """
    module = app_module
    app = module("client.app").app

    def forget(changed: RunSettings, run: str) -> None:
        with raising_here():
            module("client.site").forget_run(nodes, changed, run)

    return module("server.comparison").compare(
        play=lambda changed: module("server.in_process").InProcessGrid(
            app, nodes, at_seed(changed)
        ),
        settings=settings,
        base=base,
        seeds=seeds,
        budget=budget,
        kept=module("server.played_methods").PlayedMethods(kept),
        on_played=forget,
        on_known=on_known,
    )


def app_module(name: str) -> Any:
    """One module of the app, by name."""
    folder = str(app_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)
