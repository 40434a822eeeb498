"""Where the Flower app lies: the folders ``server``, ``client`` and ``strategies``."""

from __future__ import annotations

import sys
from pathlib import Path


def app_folder() -> Path:
    """The folder that holds them: inside the package in a wheel, else the checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "app"
    return packaged if packaged.is_dir() else package.parent


def add_app_to_path() -> None:
    """Let ``import server`` and ``import client`` find the app, as Flower does with a bundle.

    The app is not an installed package, so that it takes no common name in anybody's
    site-packages. An entry point calls this before it imports from the app.
    """
    folder = str(app_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
