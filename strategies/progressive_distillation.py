"""ProDistill: the sites' updates once, then block after block a descent on entry coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from flwr.app import RecordDict

from layerweld.errors import RefusedReplyError
from layerweld.merging.one_round import Merge
from layerweld.merging.prodistill import EntryCoefficients, ProDistill
from layerweld.model.schedule import block_steps
from layerweld.transport.block_gradients import (
    BLOCK_GRADIENTS,
    BlockReply,
    BlockRequest,
    block_gradients_layout,
    decode_block_gradients,
    encode_block_request,
)
from layerweld.updates.exact_sum import LIMIT, ExactSum
from layerweld.updates.named_tensors import (
    extend_digest,
    first_digest,
    site_tensors,
    update_tensors,
    updates_by_site,
    updates_from,
)
from layerweld.updates.update import Update
from strategies.catching_up import CatchUp
from strategies.poll import Request
from strategies.rounds import Kept, MethodRounds, Outcome, Round
from strategies.site_updates import OfOneSite, side_by_side, updates_round

_DISTANCE = "distance of block {}, last round over first"


class ProgressiveDistillation(MethodRounds):
    """Learn one coefficient per site and entry, so that merged blocks do as each site's own would.

    Round 0 collects the updates. Every later one sends the merged weights of one block; each site
    replies with the gradient, by these weights, of the distance between the block's output behind
    the merged blocks and its own block's output behind its own. The server adds the gradients up,
    exactly, makes the coefficients' gradients of the sum, since it holds all updates, and takes
    one step of Adam. After its last round a block stays as it is, and the next one is learnt.

    The updates and every finished block are kept; a block that a killed server had begun is learnt
    again from its start.
    """

    def __post_init__(self) -> None:
        self._steps = block_steps(self.plan)
        self._own = self.settings.table(ProDistill)
        self._digest = first_digest(self.plan.digest, self.settings.digest(), self.other_params)
        self._layers: Mapping[str, Mapping[str, Update]] = {}  # ΔW by layer, then by site
        self._done: list[Mapping[str, Update]] = []  # merged updates by step
        self._metrics: Mapping[str, float] = {}
        self._learning: EntryCoefficients | None = None  # of the block that is next
        self.count = 1 + len(self._steps) * self._own.steps

    def round_at(self, index: int) -> Round[Any]:
        """The updates first, then gradients of the block that is learnt."""
        if index == 0:
            return updates_round(self.plan, self.cohort, self._collect)
        step, round_ = self._steps[len(self._done)], (index - 1) % self._own.steps
        self._learning = self._learning or self._coefficients()
        asked = BlockRequest(self.context(step.index, self._digest), round_, self._learning.merged)
        # In a block's first round a site may lack what the block before became.
        usual = step.index - 1 if round_ == 0 else step.index
        catch_up = CatchUp(step, partial(self._encoded, asked), usual)
        budget = block_gradients_layout(asked.shapes).budget
        request = Request(
            BLOCK_GRADIENTS,
            f"gradient {round_ + 1} of block {step.index + 1}",
            catch_up.content,
            partial(_read, asked, catch_up),
            lambda _site: budget,
        )
        return Round(request, partial(self._fold, self._learning, round_))

    def advance(self, kept: Kept) -> None:
        """The updates are there, or one more block is done."""
        self._metrics = kept.metrics
        if self._layers:
            self._append(updates_from(kept.tensors))
            return
        received = updates_by_site(kept.tensors)
        self._layers = side_by_side(self.plan, self.cohort, received).layers
        for _step in self._steps if not self._own.steps else ():
            self._append(self._coefficients().merged)

    def outcome(self) -> Outcome:
        """All blocks that are done."""
        merged = {layer: update for block in self._done for layer, update in block.items()}
        in_order = {layer: merged[layer] for layer in self.plan.layer_names if layer in merged}
        return self.outcome_of(Merge(in_order, self._metrics))

    def _encoded(self, asked: BlockRequest, steps: range, with_other_params: bool) -> RecordDict:
        other_params = self.other_params if with_other_params else {}
        merged = {index: self._done[index] for index in steps}
        context = asked.context.with_merged(other_params, merged)
        return encode_block_request(replace(asked, context=context))

    def _collect(self, received: Mapping[str, OfOneSite]) -> Kept:
        return Kept(site_tensors(received), {})

    def _fold(
        self, learning: EntryCoefficients, round_: int, replies: Iterator[tuple[str, BlockReply]]
    ) -> Kept | None:
        """Add the gradients up, and take a step; what is kept after a block's last one."""
        sums = {layer: ExactSum(shape) for layer, shape in learning.shapes.items()}
        distance = ExactSum(())
        for _site, reply in replies:
            distance.add(torch.tensor(reply.distance, dtype=torch.float64))
            for layer, gradient in reply.gradients.items():
                sums[layer].add(gradient.double())
        learning.step({layer: total.total() for layer, total in sums.items()})
        if round_ == 0:
            self._distance_at_first = float(distance.total())
        if round_ + 1 < self._own.steps:
            return None
        name = _DISTANCE.format(len(self._done) + 1)
        ratio = float(distance.total()) / (self._distance_at_first or 1.0)
        return Kept(update_tensors(learning.merged), {**self._metrics, name: ratio})

    def _coefficients(self) -> EntryCoefficients:
        """As they start, of the block that is next."""
        step = self._steps[len(self._done)]
        names = [layer.name for group in step.groups for layer in group.layers]
        here = {name: self._layers[name] for name in names if name in self._layers}
        return EntryCoefficients(here, self._own)

    def _append(self, merged: Mapping[str, Update]) -> None:
        self._done.append(merged)
        self._digest = extend_digest(self._digest, merged)
        self._learning = None


def _read(
    asked: BlockRequest, catch_up: CatchUp, site: str, content: RecordDict
) -> BlockReply | None:
    """Gradients that may be added; None where the site must catch up first."""
    reply = decode_block_gradients(content, asked.shapes)
    if reply.need_from is not None:
        catch_up.note(site, reply.need_from)
        return None
    for layer, gradient in reply.gradients.items():
        if not bool((gradient.abs() < LIMIT).all()):  # False for NaN too
            raise RefusedReplyError(f"the gradient of {layer!r} is not finite, or beyond 2⁴²")
    if not 0 <= reply.distance < LIMIT:
        raise RefusedReplyError(f"a distance of {reply.distance}")
    return reply
