"""A benchmark's settings and sites, and how its methods are run: what all scripts here share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.app import app
from client.site import forget_run
from experiments.prepare import Name, run_file
from layerweld.report.comparison.results import Comparison
from layerweld.runtime.disk import user_cache
from layerweld.runtime.incidents import raising_here
from layerweld.runtime.terminal import showing_progress
from layerweld.settings.comparison import ComparisonSettings
from layerweld.settings.run import RunSettings
from layerweld.settings.sites import read_run_file
from server.comparison import compare
from server.federation import Federation
from server.in_process import InProcessGrid
from server.journal import RunJournal
from server.kept_results import KeptResults

Nodes = Sequence[dict[str, int]]
"""One node configuration per site."""
RESULTS = Path(__file__).parent / "results"
"""Where tables and figures are kept."""

_ATTENTION = {
    "text": "query,key,value,attention.output.dense",
    "vision": "q_proj,k_proj,v_proj,o_proj",
    "language": "q_proj,k_proj,v_proj,o_proj",
}
"""Layers of attention, as each benchmark's base model calls them."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, ready to run."""

    settings: RunSettings
    nodes: Nodes


def benchmark(name: Name, seed: int = 0) -> Benchmark:
    """Prepare and read a benchmark's run file."""
    settings, sites = read_run_file(run_file(name, seed))
    settings = settings.model_copy(update={"min_sites": len(sites)})
    nodes = ({"partition-id": i, "num-partitions": len(sites)} for i in range(len(sites)))
    return Benchmark(settings, tuple(nodes))


def compare_methods(
    settings: RunSettings,
    nodes: Nodes,
    seeds: Sequence[int],
    tune: int = 1,
    on_known: Callable[[Comparison], None] = lambda _known: None,
) -> Comparison:
    """Run a benchmark's methods; what any script has run before is found, not run again.

    Every seed draws other samples, so each has a run file of its own.
    """

    def open_grid(seeded: RunSettings) -> InProcessGrid:
        if seeded.sites:  # else the nodes say themselves who they are
            file = run_file(seeded.name, seeded.calibration.seed)
            seeded = seeded.model_copy(update={"sites": str(file)})
        return InProcessGrid(app, nodes, seeded)

    def forget(seeded: RunSettings, run: str) -> None:
        with raising_here():
            forget_run(nodes, seeded, run)

    comparison = ComparisonSettings(settings, seeds, tune)
    with showing_progress():
        return compare(
            comparison, open_grid, KeptResults(user_cache() / "results"), forget, on_known
        )


def fine_tuned_otherwise(
    settings: RunSettings, *, attention: bool, frozen_a: bool
) -> tuple[RunSettings, str]:
    """The settings with another fine-tuning, and what the folder of its results ends with.

    Args:
        settings: of a benchmark.
        attention: LoRA on attention alone, as in the paper, for encoders.
        frozen_a: ``B`` alone is trained, on one ``A`` for all sites, as in FFA-LoRA.
    """
    changes: dict[str, Any] = {}
    changes |= {"targets": _ATTENTION[settings.name]} if attention else {}
    changes |= {"freeze_a": True} if frozen_a else {}
    kind = ("-attention" if attention else "") + ("-frozen-a" if frozen_a else "")
    finetune = settings.finetune.model_copy(update=changes)
    return settings.model_copy(update={"finetune": finetune}), kind


@contextmanager
def open_federation(settings: RunSettings, nodes: Nodes) -> Iterator[Federation]:
    """The server's side of a run in this process, after the handshake, with every adapter trained.

    For what is measured beside a comparison: shifts, other cohorts. Sites forget it afterwards.
    """
    settings = settings.model_copy(update={"min_sites": len(nodes)})
    grid = InProcessGrid(app, nodes, settings)
    with tempfile.TemporaryDirectory() as folder, showing_progress():
        journal = RunJournal(Path(folder) / "journal")
        federation = Federation(grid, settings, settings.base, journal)
        federation.meet_sites()
        federation.fine_tune()
        yield federation
        with raising_here():
            forget_run(nodes, settings, federation.run)
