"""Write a comparison: tables for people, spreadsheets and READMEs, and the page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from server.comparison_report import write_comparison_report
from server.comparison_results import Comparison
from server.comparison_tables import comparison_markdown, write_csv_files
from server.output import check_output_folder

PLAYED = "played"
"""Where in the output folder results are kept as they come."""


def check_comparison_folder(folder: Path) -> None:
    """Refuse a folder that holds anything, unless that is an earlier comparison.

    Raises:
        OutputError: the folder holds something else, or cannot be made.
    """
    if not (folder / PLAYED).is_dir():
        check_output_folder(folder)


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write ``methods.csv``, ``sites.csv``, ``comparison.md``, ``.json`` and ``.html``."""
    write_csv_files(comparison, folder)
    text = comparison_markdown(comparison)
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    values = json.dumps(asdict(comparison), indent=2, sort_keys=True, default=str)
    (folder / "comparison.json").write_text(values + "\n", encoding="utf-8")
    write_comparison_report(comparison, folder / "comparison.html")
