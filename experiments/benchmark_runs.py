"""A benchmark's settings and sites, and how its methods are played: what all scripts here share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments import backbones
from layerweld.config import RunSettings
from layerweld.launch import app_module, compare_in_process
from layerweld.sites import read_run_file
from layerweld.terminal import showing_progress

Name = Literal["text", "vision", "language"]
RESULTS = Path(__file__).parent / "results"
"""Where tables and figures are kept."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, ready to be played."""

    settings: RunSettings
    nodes: tuple[dict[str, int], ...]
    """One node configuration per site."""


def benchmark(name: Name) -> Benchmark:
    """Read ``benchmarks/<name>.toml`` and unpack its base model."""
    settings, sites = read_run_file(Path(__file__).parent / "benchmarks" / f"{name}.toml")
    settings = settings.model_copy(
        update={"min_sites": len(sites), "base": str(backbones.folder(name))}
    )
    nodes = ({"partition-id": i, "num-partitions": len(sites)} for i in range(len(sites)))
    return Benchmark(settings, tuple(nodes))


def compared(
    settings: RunSettings,
    nodes: Sequence[dict[str, int]],
    seeds: Sequence[int],
    tune: int = 1,
    on_known: Callable[[Any], None] = lambda _known: None,
) -> Any:
    """Play the settings' methods; what any script has played before is found, not played again.

    Returns:
        The ``server.comparison_results.Comparison``.
    """
    kept = app_module("client.package_files").user_cache() / "played"
    with showing_progress():
        return compare_in_process(settings, nodes, settings.base, seeds, tune, kept, on_known)
