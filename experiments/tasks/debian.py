"""Files of Debian packages: installed, or unpacked below the user's cache folder."""

from __future__ import annotations

from pathlib import Path

from layerweld.errors import DataError
from layerweld.runtime.disk import user_cache


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
