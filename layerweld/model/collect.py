"""Hidden states → statistics: run a site's tokens through the merged prefix and measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from layerweld.model.linear import updated
from layerweld.model.replay import RecordedBatch, Tap, record, run_block, run_block_until
from layerweld.model.schedule import Step
from layerweld.plan import LayerGroup, MergePlan
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.covariate_shift import MomentAccumulator
from layerweld.statistics.group import GroupAccumulator, GroupStatistics, ProductForm
from layerweld.updates.update import Update

HiddenStates = list[Tensor]
"""One tensor ``(batch, seq, d_model)`` for each recorded batch."""


@dataclass(frozen=True)
class ReplayableModel:
    """A backbone together with the plan that cuts it into blocks and groups."""

    backbone: nn.Module
    plan: MergePlan

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The blocks, in forward order."""
        return [self.backbone.get_submodule(name) for name in self.plan.blocks]

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """The linear layers of the plan, by name."""
        return {name: self.backbone.get_submodule(name) for name in self.plan.layer_names}

    def record(self, batches: Sequence[Mapping[str, Tensor]]) -> list[RecordedBatch]:
        """Record how every block is called on these batches; see :mod:`layerweld.model.replay`."""
        return [record(self.backbone, self.blocks, batch) for batch in batches]

    def updates_of_block(self, block: int, updates: Mapping[str, Update]) -> dict[str, Update]:
        """Those of the updates that belong to layers of one block."""
        names = [s.name for g in self.plan.groups_of_block(block) for s in g.layers]
        return {name: updates[name] for name in names if name in updates}

    @contextmanager
    def with_updates(self, block: int, updates: Mapping[str, Update]) -> Iterator[nn.Module]:
        """One block with ``W_0 + ΔW`` in place; every other weight is the base model's."""
        with updated(self.layers, self.updates_of_block(block, updates)):
            yield self.blocks[block]


def propagate(
    model: ReplayableModel,
    recording: Sequence[RecordedBatch],
    hidden: HiddenStates,
    block: int,
    updates: Mapping[str, Update],
) -> HiddenStates:
    """Push hidden states through one block with these updates in place."""
    with model.with_updates(block, updates) as module:
        return [
            run_block(module, states, batch.calls[block])
            for states, batch in zip(hidden, recording, strict=True)
        ]


def entering_first(
    model: ReplayableModel, recording: Sequence[RecordedBatch], step: Step
) -> HiddenStates:
    """Hidden states that enter the block of a step's first group, with nothing merged before it.

    Adapters may leave the first blocks unchanged; the tokens pass through them all the same.
    """
    hidden = [batch.entry for batch in recording]
    for block in range(step.groups[0].block):
        hidden = propagate(model, recording, hidden, block, {})
    return hidden


def collect(
    model: ReplayableModel,
    recording: Sequence[RecordedBatch],
    hidden: HiddenStates,
    step: Step,
    merged: Mapping[str, Update],
    own: Mapping[str, Update],
    settings: MergeSettings,
    form: ProductForm,
) -> tuple[GroupStatistics, ...]:
    """One site's statistics of every group of a step.

    Args:
        model: the base model.
        recording: the site's calibration batches.
        hidden: hidden states that enter the block of the step's first group.
        step: what to measure, and what is in place inside the step.
        merged: updates merged so far, by layer.
        own: the site's own updates, by layer.
        settings: normalisation and shrinkage are read here.
        form: how products travel.
    """
    measured = {g.name: GroupAccumulator(g, settings, hidden[0].device) for g in step.groups}
    solving = {shape.name for group in step.groups for shape in group.layers}
    in_place = dict(merged)
    if step.inside == "own":
        in_place = {name: u for name, u in merged.items() if name not in solving}
        in_place |= {name: update for name, update in own.items() if name in solving}
    _run_blocks(model, recording, hidden, step.groups, in_place, measured)
    return tuple(accumulator.statistics(own, form) for accumulator in measured.values())


def input_moments(
    model: ReplayableModel,
    recording: Sequence[RecordedBatch],
    hidden: HiddenStates,
    block: int,
    updates: Mapping[str, Update],
) -> tuple[dict[str, MomentAccumulator], HiddenStates]:
    """Mean and covariance of the inputs of one block's groups, with these updates in place.

    Two of these give the merging covariate shift, eq. 8 of the paper: one of the merged model, one
    of the site's own (:func:`layerweld.statistics.covariate_shift.squared_wasserstein`).

    Args:
        model: the base model.
        recording: the site's calibration batches.
        hidden: hidden states that enter the block; the moments are taken on their device.
        block: index of the block.
        updates: of the whole model, by layer.

    Returns:
        The moments by group, and the hidden states that leave the block. After the plan's last
        group there are none, because nothing reads them.
    """
    device = hidden[0].device
    groups = model.plan.groups_of_block(block)
    moments = {group.name: MomentAccumulator(group.d_in, device=device) for group in groups}
    heard = {group.layers[0].name: moments[group.name] for group in groups}
    last = block == model.plan.groups[-1].block
    return moments, _run_block(model, recording, hidden, block, updates, heard, last=last)


def _run_blocks(
    model: ReplayableModel,
    recording: Sequence[RecordedBatch],
    hidden: HiddenStates,
    groups: Sequence[LayerGroup],
    updates: Mapping[str, Update],
    listeners: Mapping[str, GroupAccumulator],
) -> None:
    """Feed every group's inputs to its listener; stop at the last group's input."""
    first, last = groups[0].block, groups[-1].block
    for block in range(first, last + 1):
        heard = {g.layers[0].name: listeners[g.name] for g in groups if g.block == block}
        hidden = _run_block(model, recording, hidden, block, updates, heard, last=block == last)


def _run_block(
    model: ReplayableModel,
    recording: Sequence[RecordedBatch],
    hidden: HiddenStates,
    block: int,
    updates: Mapping[str, Update],
    listeners: Mapping[str, GroupAccumulator] | Mapping[str, MomentAccumulator],
    *,
    last: bool,
) -> HiddenStates:
    """Feed the named layers' inputs to their listeners; the last block ends once all have heard."""
    passed_on: HiddenStates = []
    with model.with_updates(block, updates) as module:
        for states, batch in zip(hidden, recording, strict=True):
            taps = [
                (model.layers[name], _tap(listener, batch.keep))
                for name, listener in listeners.items()
            ]
            if last:
                run_block_until(module, states, batch.calls[block], taps)
            else:
                passed_on.append(run_block(module, states, batch.calls[block], taps))
    return passed_on


def _tap(listener: GroupAccumulator | MomentAccumulator, keep: Tensor) -> Tap:
    return lambda inputs: listener.update(inputs, keep)
