"""Run the demo's federation with other settings, and keep what came out as rows of a table."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerweld.cli.in_process import run_in_process
from layerweld.demo.federation import demo_file
from layerweld.report.results import RunResults
from layerweld.report.scores import summaries
from layerweld.settings.sites import read_run_file

Row = dict[str, Any]


def run_demo(seed: int, methods: str, merge: Mapping[str, Any], samples: int) -> RunResults:
    """Merge the demo's six sites; adapters are trained once per seed and found again after that.

    Args:
        seed: of fine-tuning, of the split and of the calibration samples.
        methods: comma-separated.
        merge: entries of ``merge`` that differ from the demo's.
        samples: calibration samples per site.
    """
    settings, sites = read_run_file(demo_file(seed))
    merge_settings = settings.merge.model_copy(update={"covariate_shift": "off", **merge})
    calibration = settings.calibration.model_copy(update={"samples": samples})
    changes = {"methods": methods, "merge": merge_settings, "calibration": calibration}
    settings = settings.model_copy(update=changes | {"min_sites": len(sites)})
    nodes = [site.node_config() for site in sites]
    with tempfile.TemporaryDirectory() as folder:
        return run_in_process(settings, nodes, Path(folder) / "out")


def summary_rows(results: RunResults) -> list[Row]:
    """One row per method: means and worst site, as fractions."""
    rows = []
    for name, summary in summaries(results).items():
        site, worst = summary.worst or ("", float("nan"))
        row = {"method": name, "accuracy": summary.mean, "normalised": summary.mean_normalised}
        row |= {"worst_site": site, "worst_normalised": worst}
        rows.append(row | {"half_width_95": summary.half_width})
    return rows
