"""Import a module of the app by name."""

from __future__ import annotations

import importlib
from typing import Any

from layerweld.runtime.app_path import add_app_to_path


def app_module(name: str) -> Any:
    """One module of the app, by name."""
    add_app_to_path()
    return importlib.import_module(name)
