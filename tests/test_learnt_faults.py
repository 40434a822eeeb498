"""Learnt coefficients, whatever goes wrong on the way: the same bits, or an error."""

from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.merging.registry import METHODS
from layerweld.transport.block_gradients import (
    BlockReply,
    decode_block_request,
    encode_block_gradients,
)
from layerweld.transport.coefficients import (
    CoefficientsReply,
    decode_coefficients_request,
    encode_coefficients,
)
from strategies.by_method import rounds_of
from strategies.merge_strategy import MergeStrategy
from tests.faulty_grid import Clock, Faults, FaultyGrid, none
from tests.stub_sites import (
    NAMES,
    NODES,
    PLAN,
    MemoryJournal,
    StubApp,
    new_chain,
    reply_with,
    settings,
)
from tests.test_faults import SilentGrid

pytestmark = pytest.mark.usefixtures("one_thread")


class LearningStub(StubApp):
    """Sites whose entropy is a quadratic of the coefficients; a restarted one lacks the updates."""

    def __init__(self) -> None:
        super().__init__()
        self.knows: set[tuple[str, str]] = set()

    def __call__(self, message: Message, context: Any) -> Message:
        if message.metadata.message_type != "train.entropy":
            return super().__call__(message, context)
        name, asked = context.node_config["name"], decode_coefficients_request(message.content)
        if asked.updates:
            self.knows.add((name, asked.chain_digest))
        lacks = (name, asked.chain_digest) not in self.knows
        generator = torch.Generator().manual_seed(100 * NAMES.index(name) + asked.round)
        pull = torch.randn(asked.coefficients.shape, generator=generator)
        gradient = self.spoilt(name, asked.coefficients + pull)
        reply = CoefficientsReply(lacks, 0.5, gradient)
        return reply_with(encode_coefficients(reply), message, context)

    def spoilt(self, _name: str, gradient: Tensor) -> Tensor:
        return gradient


class DistilledStub(StubApp):
    """Sites whose distance is a quadratic of the weights; a restarted one lacks what was merged."""

    def __call__(self, message: Message, context: Any) -> Message:
        if message.metadata.message_type != "train.distillation":
            return super().__call__(message, context)
        name, asked = context.node_config["name"], decode_block_request(message.content)
        self.has[name] |= set(asked.context.merged)
        lacking = sorted(set(range(asked.context.step)) - self.has[name])
        if lacking:
            return reply_with(encode_block_gradients(BlockReply(lacking[0])), message, context)
        generator = torch.Generator().manual_seed(100 * NAMES.index(name) + asked.round)
        gradients = {
            layer: self.spoilt(
                name, update.dense() + torch.randn(update.shape, generator=generator)
            )
            for layer, update in asked.updates.items()
        }
        reply = BlockReply(None, 0.5, gradients)
        return reply_with(encode_block_gradients(reply), message, context)

    def spoilt(self, _name: str, gradient: Tensor) -> Tensor:
        return gradient


def learn(
    stub: Any,
    faults: Faults,
    clock: Clock,
    journal: MemoryJournal | None = None,
    grid: Any = FaultyGrid,
    **entries: Any,
) -> tuple[MergeStrategy, FaultyGrid]:
    chosen = settings(
        adamerging={"rounds": 4, "learning-rate": 0.1},
        prodistill={"steps": 3, "learning-rate": 0.1},
        **entries,
    )
    cohort = new_chain(chosen).cohort
    name = "adamerging" if isinstance(stub, LearningStub) else "prodistill"
    rounds = rounds_of(METHODS[name], PLAN, cohort, chosen, {})
    grid = grid(stub, NODES, chosen, faults, clock)
    return MergeStrategy(cohort, rounds, journal or MemoryJournal()), grid


STUBS = pytest.mark.parametrize("stub", [LearningStub, DistilledStub])


@STUBS
@pytest.mark.parametrize("seed", range(12))
def test_no_fault_on_the_way_changes_a_bit(stub: Any, seed: int, clock: Clock) -> None:
    merges = []
    for faults in (none(), Faults(seed)):
        strategy, grid = learn(stub(), faults, clock)
        strategy.run(grid)
        merges.append(strategy.rounds.outcome())
    assert merges[0].metrics == merges[1].metrics
    for layer, update in merges[0].updates.items():
        assert torch.equal(update.dense(), merges[1].updates[layer].dense())


@STUBS
def test_flowers_own_loop_learns_the_same(stub: Any, clock: Clock) -> None:
    strategy, grid = learn(stub(), none(), clock)
    strategy.run(grid)
    started, grid = learn(stub(), Faults(5, kinds=("error 2", "moved")), clock)
    started.start(grid, ArrayRecord())
    for layer, update in strategy.rounds.outcome().updates.items():
        assert torch.equal(update.dense(), started.rounds.outcome().updates[layer].dense())


@STUBS
@pytest.mark.parametrize("name", ["nan", "infinity", "shape"])
def test_a_gradient_that_cannot_be_added_is_refused(stub: Any, name: str, clock: Clock) -> None:
    class Spoiler(stub):
        def spoilt(self, site: str, gradient: Any) -> Any:
            if site == "birch":
                gradient[0, 0] = {"nan": float("nan"), "infinity": float("inf")}.get(name, 1.0)
                return gradient[1:] if name == "shape" else gradient
            return gradient

    strategy, grid = learn(Spoiler(), none(), clock)
    with pytest.raises(RefusedReplyError, match="birch, asked 3 times"):
        strategy.run(grid)


@STUBS
def test_a_run_goes_on_without_a_lost_site_and_is_resumed_without_it(
    stub: Any, clock: Clock
) -> None:
    class Lost(stub):
        def spoilt(self, site: str, gradient: Any) -> Any:
            replies[site] = replies.get(site, 0) + 1
            if site == "birch" and replies[site] > 2:
                raise ValueError
            return gradient

    replies: dict[str, int] = {}
    journal = MemoryJournal()
    policy: dict[str, Any] = {"lost-site": "continue", "deadline": 600.0}
    strategy, grid = learn(Lost(), none(), clock, journal, SilentGrid, **policy)
    strategy.run(grid)
    assert strategy.finished == strategy.rounds.count
    assert strategy.cohort.names == ("ash", "cedar")
    resumed, _ = learn(Lost(), none(), clock, journal, **policy)
    assert resumed.finished == resumed.rounds.count
    assert resumed.cohort.names == ("ash", "cedar")
    assert resumed.rounds.outcome().metrics == strategy.rounds.outcome().metrics
    for layer, update in strategy.rounds.outcome().updates.items():
        assert torch.equal(update.dense(), resumed.rounds.outcome().updates[layer].dense())
