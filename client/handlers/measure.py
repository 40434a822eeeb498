"""Measure a model on a site's samples: held-out accuracy, and the merging covariate shift."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from client.data.samples import Dataset
from client.site import cache_folder
from client.state import SiteState
from client.training.evaluate import accuracy
from layerweld.errors import DataError, StorageError
from layerweld.model.collect import ReplayableModel, input_moments
from layerweld.model.linear import updated
from layerweld.plan import MergePlan
from layerweld.runtime.disk import writing
from layerweld.statistics.covariate_shift import MomentAccumulator, squared_wasserstein
from layerweld.transport.model import ModelToMeasure
from layerweld.untrusted.files import contents, reading
from layerweld.untrusted.names import below
from layerweld.updates.task_vector import TaskVector

_LARGEST = 1024  # bytes of a kept score


def held_out_accuracy(state: SiteState, model: ModelToMeasure) -> tuple[float, int]:
    """Share of the held-out samples that the model gets right, and how many samples there are.

    Raises:
        DataError: the site has no labelled held-out samples.
    """
    held_out = state.data.evaluation_samples
    if held_out is None:
        raise DataError(f"{state.site.name} has no held-out samples to evaluate on")
    if model.kind == "merged":
        return _measured(state, model, held_out)
    return kept_or_measured(state, model.kind, lambda: _measured(state, model, held_out))


def _measured(state: SiteState, model: ModelToMeasure, held_out: Dataset) -> tuple[float, int]:
    head = state.head.load()
    parts = _parts(state, model)
    replayable = ReplayableModel(state.base.backbone, state.plan)
    with state.with_other_params(parts.other_params), updated(replayable.layers, parts.updates):
        return accuracy(
            state.base,
            head,
            held_out,
            state.settings.evaluate,
            state.settings.calibration.prompt_end,
        )


def shift_per_group(state: SiteState, model: ModelToMeasure) -> dict[str, float]:
    """Eq. 8 between the inputs in this model and in the site's own, by layer group.

    The two models are walked side by side: the moments of all blocks of an 8-billion-parameter one
    would be 65 GB each, those of one block are 2.
    """
    plan = state.plan.restricted_to(model.layers)
    there = _Walk(state, plan, _parts(state, model))
    here = _Walk(state, plan, state.adapter.task_vector)
    shifts: dict[str, float] = {}
    for block in range(plan.groups[-1].block + 1):
        shifts |= _shifts_of_block(there.moments(block), here.moments(block))
    return shifts


def _shifts_of_block(
    there: dict[str, MomentAccumulator], here: dict[str, MomentAccumulator]
) -> dict[str, float]:
    """Eq. 8 of each group; its accumulators are let go of before the eigenvalues need room."""
    return {
        group: squared_wasserstein(*there.pop(group).moments(), *here.pop(group).moments())
        for group in list(there)
    }


class _Walk:
    """One model on its way through the site's calibration samples, a block at a time.

    Between blocks the base model is as it was: another walk may use it.

    Args:
        state: of the site.
        plan: of the layers being merged.
        parts: what is in place in this model.
    """

    def __init__(self, state: SiteState, plan: MergePlan, parts: TaskVector) -> None:
        self._state = state
        self._model = ReplayableModel(state.base.backbone, plan)
        self._parts = parts
        with self._with_other_params():
            if parts.other_params:
                self._recording = self._model.record(state.batches)
            else:  # as the chain has recorded them already
                self._recording = state.recording(self._model, shifted_embeddings=False)
        self._hidden = [batch.entry for batch in self._recording]

    def moments(self, block: int) -> dict[str, MomentAccumulator]:
        """Of the inputs of one block's groups; blocks are asked for in forward order."""
        with self._with_other_params():
            moments, self._hidden = input_moments(
                self._model, self._recording, self._hidden, block, self._parts.updates
            )
        return moments

    def _with_other_params(self) -> AbstractContextManager[None]:
        return self._state.with_other_params(self._parts.other_params)


def _parts(state: SiteState, model: ModelToMeasure) -> TaskVector:
    if model.kind == "individual":
        return state.adapter.task_vector
    return TaskVector(model.updates, model.other_params)


def kept_or_measured(
    state: SiteState, kind: str, measure: Callable[[], tuple[float, int]]
) -> tuple[float, int]:
    """The kept accuracy and number of samples, or the measured ones, which are then kept.

    Args:
        state: the site; its base model, adapter, head and held-out samples decide the score.
        kind: ``base`` or ``individual``.
        measure: takes the measurement where none is kept.
    """
    file = _score_file(state, kind)
    kept = _read_score(file)
    if kept is not None:
        return kept
    measured = measure()
    with writing(file) as partial:
        partial.write_text(json.dumps(measured), encoding="utf-8")
    return measured


def _read_score(file: Path) -> tuple[float, int] | None:
    if not file.is_file():
        return None
    try:
        with reading(f"{file} is damaged", "it is measured again", StorageError):
            accuracy, samples = json.loads(contents(file, StorageError, _LARGEST))
            right = type(accuracy) is float and 0 <= accuracy <= 1 and type(samples) is int
    except StorageError:
        return None
    return (accuracy, samples) if right and samples > 0 else None


def _score_file(state: SiteState, kind: str) -> Path:
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
