"""Which step a request is about, and what was merged before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from layerweld.transport.arrays import Shapes, from_arrays, to_arrays
from layerweld.transport.identity import ABOUT, IN_REQUEST, Identity, request_id
from layerweld.transport.layout import Entries, Flag, Many, Text, Whole
from layerweld.transport.untrusted import packed, unpacked
from layerweld.updates.named_tensors import site_tensors, updates_by_site
from layerweld.updates.update import Update

MOST_STEPS = 2**16
LAYERS = Many(Text(300), 2**15)
"""Names of layers; more than any mixture of experts has."""

_MERGED, _OTHER_PARAMS = "merged", "other-params"

_OWN: Entries = {
    "method": Text(),
    "step": Whole(high=MOST_STEPS),
    "layers": LAYERS,
    "averaged": Flag(),
}
CONTEXT_ENTRIES: Entries = {**IN_REQUEST, **_OWN}
CONTEXT_ARRAYS: Mapping[str, Shapes | None] = {_MERGED: None, _OTHER_PARAMS: None}


@dataclass(frozen=True)
class StepContext:
    """A step of a schedule, as server and sites must agree on it.

    Attributes:
        run: identifies the run; sites keep their state under it.
        method: name of the method, see :mod:`layerweld.settings.methods`.
        step: index of the step in the schedule.
        layers: the layers being merged; with the model they give the plan.
        plan: digest of that plan.
        chain_digest: hash over everything merged before this step.
        averaged: whether other parameters were averaged before the first step.
        other_params: the averaged other parameters of full fine-tuning; only where the site may
            lack them.
        merged: updates of earlier steps, by step; only what the site may lack.
    """

    run: str
    method: str
    step: int
    layers: tuple[str, ...]
    plan: str
    chain_digest: str
    averaged: bool
    other_params: Mapping[str, Tensor] = field(default_factory=dict)
    merged: Mapping[int, Mapping[str, Update]] = field(default_factory=dict)

    def identity(self, message_type: str, *decides: object) -> Identity:
        """Of a request about this step; what a site may lack is no part of it."""
        decides_step = (self.method, self.step, self.layers, self.averaged)
        request = request_id(message_type, *decides_step, *decides)
        return Identity(self.run, request, self.plan, self.chain_digest)

    def with_merged(
        self, other_params: Mapping[str, Tensor], merged: Mapping[int, Mapping[str, Update]]
    ) -> StepContext:
        """The same with what a site may lack."""
        return replace(self, other_params=other_params, merged=merged)

    @property
    def entries(self) -> dict[str, Any]:
        """What travels of it beside its identity."""
        return packed(self, _OWN)

    @property
    def arrays(self) -> dict[str, ArrayRecord]:
        """The tensors that travel."""
        merged = {str(step): updates for step, updates in self.merged.items()}
        return {
            _MERGED: to_arrays(site_tensors(merged)),
            _OTHER_PARAMS: to_arrays(self.other_params),
        }


def step_context(content: RecordDict) -> StepContext:
    """Out of a request that has these entries and arrays."""
    merged = updates_by_site(from_arrays(content.array_records[_MERGED]))
    return StepContext(
        **unpacked(content.config_records[ABOUT], CONTEXT_ENTRIES.keys() - {"request"}),
        other_params=from_arrays(content.array_records[_OTHER_PARAMS]),
        merged={int(step): updates for step, updates in merged.items()},
    )
