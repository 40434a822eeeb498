"""How far a merged block's output is from the site's own, and the gradient by its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from client.handlers.merged_prefix import merged_prefix, step_of
from client.handlers.merged_steps import LacksMerged
from client.state import SiteState
from layerweld.merging.prodistill import squared_distance
from layerweld.model.collect import HiddenStates, ReplayableModel, propagate
from layerweld.model.linear import is_transposed, updated
from layerweld.model.replay import RecordedBatch, forward_block
from layerweld.model.schedule import block_steps
from layerweld.transport.block_gradients import BlockReply, BlockRequest
from layerweld.transport.step_context import StepContext
from layerweld.updates.update import Update


def reply_to(state: SiteState, request: BlockRequest) -> BlockReply:
    """The gradients that a request asks for, or what the site lacks to compute them.

    Raises:
        RefusedReplyError: the request's plan or chain digest is not what this site computes from
            the same model and the same merged updates.
    """
    plan = state.plan.restricted_to(request.context.layers)
    model = ReplayableModel(state.base.backbone, plan)
    try:
        features = _memory(state).features(model, request.context)
    except LacksMerged as lack:
        return BlockReply(need_from=lack.first)
    with state.with_other_params(features.other_params):
        distance, gradients = _distance_and_gradients(model, request.updates, features)
    return BlockReply(None, distance, gradients)


@dataclass(frozen=True)
class _Features:
    """What does not change while one block's coefficients are learnt.

    Attributes:
        block: index of the block.
        other_params: the averaged ones; empty for LoRA.
        recording: the calibration batches, as the averaged embeddings see them.
        entering: features behind the merged blocks, that enter this one.
        target: what the site's own block makes of its own features.
    """

    block: int
    other_params: dict[str, Tensor]
    recording: list[RecordedBatch]
    entering: HiddenStates
    target: HiddenStates


class _Memory:
    """The features of the block that a site is asked about, for as long as it is the same one."""

    def __init__(self, state: SiteState) -> None:
        self._state = state
        self._block: tuple[str, int, str] | None = None
        self._features: _Features | None = None

    def features(self, model: ReplayableModel, context: StepContext) -> _Features:
        """Of the request's block.

        Raises:
            LacksMerged: they cannot be computed yet.
        """
        block = (context.method, context.step, context.chain_digest)
        if self._features is None or self._block != block:
            self._features = None  # the block before is done: let go of it first
            self._features = _prepared(self._state, model, context)
            self._block = block
        return self._features


@lru_cache(maxsize=16)
def _memory(state: SiteState) -> _Memory:
    """One per site of a process; a new process begins with an empty one."""
    return _Memory(state)


def _prepared(state: SiteState, model: ReplayableModel, context: StepContext) -> _Features:
    steps = block_steps(model.plan)
    store = state.store(context.method)
    digest = state.settings.digest()
    prefix = merged_prefix(context, steps, model.plan.digest, digest, store)
    with state.with_other_params(prefix.other_params):
        recording = state.recording(model, shifted_embeddings=bool(prefix.other_params))
        entering = prefix.hidden_before(model, recording)
    block = step_of(context.step, steps).groups[0].block
    target = _own_output(state, model, block)
    return _Features(block, prefix.other_params, recording, entering, target)


def _own_output(state: SiteState, model: ReplayableModel, block: int) -> HiddenStates:
    """What the site's own model puts out of a block: kept, or computed from what is."""
    store, own = state.store("own"), state.adapter.task_vector
    with state.with_other_params(dict(own.other_params)):
        recording = model.record(state.batches)
        hidden, done = [batch.entry for batch in recording], 0
        for candidate in range(block + 1, 0, -1):
            kept = store.load_hidden(candidate, "own")
            if kept is not None:
                hidden, done = [states.to(hidden[0].device) for states in kept], candidate
                break
        for index in range(done, block + 1):
            hidden = propagate(model, recording, hidden, index, own.updates)
    if done <= block:
        store.save_hidden(block + 1, "own", hidden)
    return hidden


def _distance_and_gradients(
    model: ReplayableModel, updates: Mapping[str, Update], features: _Features
) -> tuple[float, dict[str, Tensor]]:
    """Both are means over the site's samples, so that every site has the same say."""
    block, layers = model.blocks[features.block], [model.layers[n] for n in updates]
    samples = sum(len(states) for states in features.entering)
    distance = 0.0
    totals: list[Tensor] = []
    with updated(model.layers, updates), _differentiable(layers) as weights:
        for entering, target, batch in zip(
            features.entering, features.target, features.recording, strict=True
        ):
            output = forward_block(block, entering, batch.calls[features.block])
            loss = squared_distance(output, target, batch.keep) / samples
            new = torch.autograd.grad(loss, weights)
            totals = [a + b for a, b in zip(totals, new, strict=True)] if totals else [*new]
            distance += float(loss.detach())
    in_layout = (
        total.T if is_transposed(layer) else total
        for layer, total in zip(layers, totals, strict=True)
    )
    return distance, {name: total.cpu() for name, total in zip(updates, in_layout, strict=True)}


@contextmanager
def _differentiable(layers: list[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """The weights of the layers, with gradients for as long as this lasts."""
    weights = [layer.get_parameter("weight") for layer in layers]
    try:
        for weight in weights:
            weight.requires_grad_()
        yield weights
    finally:
        for weight in weights:
            weight.requires_grad_(False)
