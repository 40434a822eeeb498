"""Write a run's results: for programs, for a spreadsheet and for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from layerweld.report.results import RunResults
from layerweld.report.run.page import write_report
from layerweld.report.run.tables import write_accuracy_csv


def write_results(folder: Path, results: RunResults) -> None:
    """Write ``results.json``, ``report.html``, and ``accuracy.csv`` where there are scores."""
    text = json.dumps(asdict(results), indent=2, sort_keys=True, default=str, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    if any(method.scores for method in results.methods):
        write_accuracy_csv(results, folder / "accuracy.csv")
    write_report(results, folder / "report.html")
