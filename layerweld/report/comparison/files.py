"""Write a comparison: tables for people, spreadsheets and READMEs, and the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from layerweld.report.comparison.page import write_comparison_report
from layerweld.report.comparison.results import Comparison
from layerweld.report.comparison.tables import comparison_markdown, write_csv_files
from layerweld.report.output_folder import check_output_folder
from layerweld.runtime.disk import holding_lock, lock_of, writing

KEPT = "results"
"""Where in the output folder results are kept as they come."""


@contextmanager
def comparing_in(folder: Path) -> Iterator[None]:
    """Hold an output folder: a new one, an empty one, or that of an earlier comparison.

    Raises:
        InUseError: another comparison, or a run, works in it.
        OutputError: it holds something else, or cannot be made.
    """
    with holding_lock(lock_of(folder), str(folder)):
        if not (folder / KEPT).is_dir():
            check_output_folder(folder)
        yield


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write ``methods.csv``, ``sites.csv``, ``comparison.md``, ``.json`` and ``.html``.

    Raises:
        StorageError: one cannot be written; it is then as it was before.
    """
    write_csv_files(comparison, folder)
    with writing(folder / "comparison.md") as partial:
        partial.write_text(comparison_markdown(comparison), encoding="utf-8")
    values = json.dumps(asdict(comparison), indent=2, sort_keys=True, default=str, allow_nan=False)
    with writing(folder / "comparison.json") as partial:
        partial.write_text(values + "\n", encoding="utf-8")
    write_comparison_report(comparison, folder / "comparison.html")
