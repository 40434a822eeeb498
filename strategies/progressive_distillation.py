"""ProDistill: the sites' updates once, then block after block a descent on entry coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from flwr.app import RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.merging.one_round import Merge
from layerweld.merging.prodistill import EntryCoefficients
from layerweld.model.schedule import block_steps
from layerweld.plan import MergePlan
from layerweld.settings.run import RunSettings
from layerweld.transport.block_gradients import (
    BLOCK_GRADIENTS,
    BlockReply,
    BlockRequest,
    block_gradients_layout,
    decode_block_gradients,
    encode_block_request,
)
from layerweld.transport.step_context import StepContext
from layerweld.updates.digest import extend_prefix, first_prefix
from layerweld.updates.exact_sum import LIMIT, ExactSum
from layerweld.updates.named_tensors import (
    site_tensors,
    update_tensors,
    updates_by_site,
    updates_from,
)
from layerweld.updates.update import Update
from strategies.catching_up import CatchUp
from strategies.cohort import Cohort
from strategies.kept_rounds import KeptRound, RoundJournal, RoundLedger, Traffic
from strategies.round_by_round import Round
from strategies.site_updates import OfOneSite, side_by_side, updates_round

_DISTANCE = "distance of block {}, last round over first"


class ProgressiveDistillation:
    """Learn one coefficient per site and entry, so that merged blocks do as each site's own would.

    Round 0 collects the updates. Every later one sends the merged weights of one block; each site
    answers with the gradient, by these weights, of the distance between the block's output behind
    the merged blocks and its own block's output behind its own. The server adds the gradients up,
    exactly, makes the coefficients' gradients of the sum, since it holds all updates, and takes
    one step of Adam. After its last round a block stays as it is, and the next one is learnt.

    Args:
        plan: the layers that are merged.
        cohort: the sites.
        settings: of the run.
        remainder: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
        journal: keeps the updates and every finished block; a block that a killed server had
            begun is learnt again from its start.
    """

    def __init__(
        self,
        plan: MergePlan,
        cohort: Cohort,
        settings: RunSettings,
        remainder: Mapping[str, Tensor],
        journal: RoundJournal,
    ) -> None:
        self.plan = plan
        self.cohort = cohort
        self.remainder = remainder
        self.steps = block_steps(plan)
        self.count = 1 + len(self.steps) * settings.prodistill.steps
        self.played = 0
        self._settings = settings.prodistill
        self._prefix = first_prefix(plan.digest, settings.digest(), remainder)
        self._ledger = RoundLedger(journal, cohort)
        self._layers: Mapping[str, Mapping[str, Update]] = {}  # ΔW by layer, then by site
        self._done: dict[int, dict[str, Update]] = {}  # merged updates by step
        self._round = 0  # of the block's descent
        for kept in journal.load():
            self._resume(kept)
        self._begin_block()

    @property
    def traffic(self) -> Traffic:
        """Bytes so far."""
        return self._ledger.traffic

    @property
    def merged(self) -> Merge:
        """All blocks that are done."""
        updates = {layer: u for of in self._done.values() for layer, u in of.items()}
        return Merge(updates, self._ledger.figures)

    def next_round(self) -> Round[OfOneSite] | Round[BlockReply]:
        """The updates first, then gradients of the block that is learnt."""
        if not self.played:
            return updates_round(self.plan, self.cohort, self._collected)
        step = self.steps[len(self._done)]
        context = StepContext(
            run=self.cohort.run,
            method="prodistill",
            step=step.index,
            layers=self.plan.layer_names,
            plan=self.plan.digest,
            chain_digest=self._prefix,
            averaged=bool(self.remainder),
        )
        request = BlockRequest(context, self._round, self._coefficients.merged)
        # In a block's first round a site may lack what the block before became.
        usual = step.index - 1 if self._round == 0 else step.index
        catch_up = CatchUp(step, partial(self._encoded, request), usual)
        what = f"gradient {self._round + 1} of block {step.index + 1}"
        read = partial(_read, request, catch_up)
        budget = block_gradients_layout(request.shapes).budget
        return Round(
            BLOCK_GRADIENTS,
            what,
            catch_up.content,
            read,
            lambda _site: budget,
            self._descend,
        )

    def _encoded(self, request: BlockRequest, steps: range, with_remainder: bool) -> RecordDict:
        remainder = self.remainder if with_remainder else {}
        merged = {index: self._done[index] for index in steps}
        return encode_block_request(
            replace(request, context=request.context.with_merged(remainder, merged))
        )

    def _collected(self, received: Mapping[str, OfOneSite]) -> None:
        self._ledger.keep(0, site_tensors(received))
        self._layers = side_by_side(self.plan, self.cohort, received).layers
        self.played = 1
        self._begin_block()

    def _descend(self, answers: Iterator[tuple[str, BlockReply]]) -> None:
        sums = {layer: ExactSum(shape) for layer, shape in self._coefficients.shapes.items()}
        distance = ExactSum(())
        for _site, answer in answers:
            distance.add(torch.tensor(answer.distance, dtype=torch.float64))
            for layer, gradient in answer.gradients.items():
                sums[layer].add(gradient.double())
        self._coefficients.step({layer: total.total() for layer, total in sums.items()})
        if self._round == 0:
            self._distance_at_first = float(distance.total())
        self._round += 1
        self.played += 1
        if self._round == self._settings.steps:
            name = _DISTANCE.format(len(self._done) + 1)
            self._ledger.figures[name] = float(distance.total()) / (self._distance_at_first or 1.0)
            self._end_block()

    def _begin_block(self) -> None:
        """Of the next block that is not done, if the updates are there; without steps, all."""
        self._round = 0
        while self._layers and len(self._done) < len(self.steps):
            step = self.steps[len(self._done)]
            names = [layer.name for group in step.groups for layer in group.layers]
            here = {name: self._layers[name] for name in names if name in self._layers}
            self._coefficients = EntryCoefficients(here, self._settings)
            if self._settings.steps:
                return
            self._append(self._coefficients.merged)

    def _end_block(self) -> None:
        merged = self._coefficients.merged
        self._append(merged)
        self._ledger.keep(len(self._done), update_tensors(merged))
        self._begin_block()

    def _append(self, merged: dict[str, Update]) -> None:
        self._done[len(self._done)] = merged
        self._prefix = extend_prefix(self._prefix, merged)

    def _resume(self, kept: KeptRound) -> None:
        if kept.index == 0:
            received = updates_by_site(kept.tensors)
            self._layers = side_by_side(self.plan, self.cohort, received).layers
        else:
            self._append(updates_from(kept.tensors))
        self._ledger.restore(kept)
        self.played = 1 + kept.index * self._settings.steps


def _read(
    asked: BlockRequest, catch_up: CatchUp, site: str, content: RecordDict
) -> BlockReply | None:
    """Gradients that may be added; None where the site must catch up first."""
    answer = decode_block_gradients(content, asked.shapes)
    if answer.need_from is not None:
        catch_up.note(site, answer.need_from)
        return None
    _require_bounded(answer)
    return answer


def _require_bounded(answer: BlockReply) -> None:
    for layer, gradient in answer.gradients.items():
        if not bool((gradient.abs() < LIMIT).all()):  # False for NaN too
            raise RefusedReplyError(f"the gradient of {layer!r} is not finite, or beyond 2⁴²")
    if not 0 <= answer.distance < LIMIT:
        raise RefusedReplyError(f"a distance of {answer.distance}")
