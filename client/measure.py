"""Measure a model on a site's own rows: held-out accuracy, and the merging covariate shift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from client.data import Rows
from client.evaluate import accuracy
from client.reference_scores import kept_or_measured
from client.state import SiteState
from layerweld.collect import ReplayableModel, input_moments
from layerweld.covariate_shift import MomentAccumulator, squared_wasserstein
from layerweld.errors import DataError
from layerweld.linear import updated
from layerweld.transport.messages import ModelToMeasure
from layerweld.updates import Update


@dataclass(frozen=True)
class _Parts:
    updates: Mapping[str, Update]
    remainder: Mapping[str, Tensor]


def held_out_accuracy(state: SiteState, model: ModelToMeasure) -> tuple[float, int]:
    """Share of the held-out rows that the model gets right, and how many rows there are.

    Raises:
        DataError: the site has no labelled held-out rows.
    """
    if state.data.held_out is None:
        raise DataError(f"{state.site.name} has no held-out rows to evaluate on")
    if model.kind == "merged":
        return _measured(state, model, state.data.held_out)
    held_out = state.data.held_out
    return kept_or_measured(state, model.kind, lambda: _measured(state, model, held_out))


def _measured(state: SiteState, model: ModelToMeasure, held_out: Rows) -> tuple[float, int]:
    head = state.head
    parts = _parts(state, model)
    replayable = ReplayableModel(state.base.backbone, state.plan)
    with (
        state.with_remainder(dict(parts.remainder)),
        updated(replayable.layers, parts.updates),
    ):
        return accuracy(
            state.base,
            head,
            held_out,
            state.settings.evaluate,
            state.settings.calibration.prompt_end,
        )


def shift_per_group(state: SiteState, model: ModelToMeasure) -> dict[str, float]:
    """Eq. 8 between the inputs in this model and in the site's own, by layer group."""
    merged, own = _parts(state, model), state.adapter.task_vector
    there = _moments(state, model.layers, merged)
    here = _moments(state, model.layers, _Parts(own.updates, own.remainder))
    return {
        group: squared_wasserstein(*there[group].moments(), *here[group].moments())
        for group in there
    }


def _moments(
    state: SiteState, layers: tuple[str, ...], parts: _Parts
) -> dict[str, MomentAccumulator]:
    model = ReplayableModel(state.base.backbone, state.plan.restricted_to(layers))
    with state.with_remainder(dict(parts.remainder)):
        if parts.remainder:
            recording = model.record(state.batches)
        else:  # as the chain has recorded them already
            recording = state.recording(model, shifted_embeddings=False)
        return input_moments(model, recording, parts.updates)


def _parts(state: SiteState, model: ModelToMeasure) -> _Parts:
    if model.kind == "base":
        return _Parts({}, {})
    if model.kind == "individual":
        own = state.adapter.task_vector
        return _Parts(own.updates, own.remainder)
    return _Parts(model.updates, model.remainder)
