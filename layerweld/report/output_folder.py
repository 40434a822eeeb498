"""The output folder of a run: what may be in it, and how its products come into it together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerweld.errors import OutputError
from layerweld.runtime.disk import move, raising_storage_error, sync_below
from layerweld.runtime.run_state import is_state

JOURNAL = "journal"
ENVIRONMENTS = "environment.json"
"""What decided the last digits, at the coordinator and at each site."""

# In the order in which they are moved into the folder; the manifest says that all of them are.
_PRODUCTS = (
    "adapter", "model", "accuracy.csv", "results.json", "report.html", ENVIRONMENTS,
    "manifest.json",
)  # fmt: skip


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but what an interrupted run has left.

    That is its state, its journal, and perhaps some of its products.

    Raises:
        OutputError: the folder holds something else, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose another output folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    there = sorted(name for name in names if not is_state(name))
    if there and not (JOURNAL in there and {*there} <= {JOURNAL, *_PRODUCTS}):
        foreign = [name for name in there if name not in {JOURNAL, *_PRODUCTS}]
        raise OutputError(
            f"{folder} is not empty (it holds {(foreign or there)[0]!r}); choose another output "
            f"folder, or move what it holds away"
        )
    parent = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{folder} cannot be created: {parent} is not writable")


@contextmanager
def finished_together(folder: Path) -> Iterator[Path]:
    """Give a folder to write all products into; they move to ``folder`` once all are written.

    What is there when this returns, no power cut takes away: the journal may go.

    Raises:
        StorageError: the disk is full; the products so far are removed, the journal stays.
    """
    staging = folder / JOURNAL / "products"
    with raising_storage_error(folder):
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        staging.mkdir(parents=True)
        try:
            yield staging
            sync_below(staging)
            for name in _PRODUCTS:
                _replace(staging / name, folder / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _replace(product: Path, target: Path) -> None:
    if not product.exists():
        return
    if target.is_dir():
        shutil.rmtree(target)  # moved here by a run that was killed before it was finished
    move(product, target)
