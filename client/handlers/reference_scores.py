"""Accuracies of the base model and of a site's own model, kept: they do not change with merges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from client.site import cache_folder
from client.state import SiteState
from layerweld.errors import StorageError
from layerweld.runtime.disk import writing
from layerweld.untrusted.files import contents, reading
from layerweld.untrusted.names import below

_LARGEST = 1024  # bytes


def kept_or_measured(
    state: SiteState, kind: str, measure: Callable[[], tuple[float, int]]
) -> tuple[float, int]:
    """The kept accuracy and number of samples, or the measured ones, which are then kept.

    Args:
        state: the site; its base model, adapter, head and held-out samples decide the score.
        kind: ``base`` or ``individual``.
        measure: takes the measurement where none is kept.
    """
    file = _file(state, kind)
    kept = _read(file)
    if kept is not None:
        return kept
    measured = measure()
    with writing(file) as partial:
        partial.write_text(json.dumps(measured), encoding="utf-8")
    return measured


def _read(file: Path) -> tuple[float, int] | None:
    if not file.is_file():
        return None
    try:
        with reading(f"{file} is damaged", "it is measured again", StorageError):
            accuracy, samples = json.loads(contents(file, StorageError, _LARGEST))
            right = type(accuracy) is float and 0 <= accuracy <= 1 and type(samples) is int
    except StorageError:
        return None
    return (accuracy, samples) if right and samples > 0 else None


def _file(state: SiteState, kind: str) -> Path:
    digest = hashlib.sha256(state.head.content)
    decides = (
        state.base.fingerprint,
        state.adapter.digest if kind == "individual" else "",
        state.data.held_out.digest if state.data.held_out else "",
        state.settings.evaluate.model_dump_json(),
    )
    digest.update(" ".join(decides).encode())
    name = f"{state.site.name}-{kind}-{digest.hexdigest()[:16]}.json"
    return below(cache_folder(state.site, state.settings), "scores", name)
