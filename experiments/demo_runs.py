"""Play the demo's federation with other settings, and keep what came out as rows of a table."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerweld.demo import base_folder, demo_settings
from layerweld.launch import app_module, play_in_process

Row = dict[str, Any]

_SITES = 6


def play_demo(seed: int, methods: str, merge: Mapping[str, Any], samples: int) -> Any:
    """Merge the demo's six sites; adapters are trained once per seed and found again after that.

    Args:
        seed: of fine-tuning, of the split and of the calibration rows.
        methods: comma-separated.
        merge: entries of ``merge`` that differ from the demo's.
        samples: calibration rows per site.

    Returns:
        The ``layerweld.report.run_results.RunResults`` of the run.
    """
    settings = demo_settings(seed, methods)
    changed = settings.merge.model_copy(update={"covariate_shift": "off", **merge})
    calibration = settings.calibration.model_copy(update={"samples": samples})
    settings = settings.model_copy(update={"merge": changed, "calibration": calibration})
    nodes = [{"partition-id": number, "num-partitions": _SITES} for number in range(_SITES)]
    with tempfile.TemporaryDirectory() as folder:
        return play_in_process(settings, nodes, str(base_folder()), Path(folder) / "out")


def summary_rows(results: Any) -> list[Row]:
    """One row per method: means and worst site, as fractions."""
    scores = app_module("layerweld.report.run_scores")
    rows = []
    for name, summary in scores.summaries(results).items():
        worst = summary.worst or ("", float("nan"))
        rows.append(
            {
                "method": name,
                "accuracy": summary.mean,
                "normalised": summary.mean_normalised,
                "worst_site": worst[0],
                "worst_normalised": worst[1],
                "half_width_95": summary.half_width,
            }
        )
    return rows
