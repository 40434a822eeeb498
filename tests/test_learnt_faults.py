"""Learnt coefficients, whatever goes wrong on the way: the same bits, or an error."""

import pytest
import torch
from flwr.app import ArrayRecord, Message

from layerweld.descent import CoefficientAnswer
from layerweld.descent_transport import decode_coefficients, encode_gradient
from layerweld.errors import RefusedReplyError
from layerweld.launch import app_module
from tests.faulty_grid import Faults, FaultyGrid, none
from tests.stub_sites import NAMES, NODES, PLAN, StubApp, new_chain, settings


class LearningStub(StubApp):
    """Sites whose entropy is a quadratic of the coefficients; a restarted one lacks the updates."""

    def __call__(self, message, context):
        if message.metadata.message_type != "train.entropy":
            return super().__call__(message, context)
        name, asked = context.node_config["name"], decode_coefficients(message.content)
        if asked.updates:
            self.has[name].add(asked.held)
        lacks = asked.held not in self.has[name]
        generator = torch.Generator().manual_seed(100 * NAMES.index(name) + asked.round)
        pull = torch.randn(asked.coefficients.shape, generator=generator)
        gradient = self.spoilt(name, asked.coefficients + pull)
        reply = CoefficientAnswer(name, asked.digest, lacks, 0.5, gradient)
        return Message(encode_gradient(reply), reply_to=message)

    def spoilt(self, _name, gradient):
        return gradient


class NoJournal:
    def load(self):
        return []

    def keep(self, round_):
        pass


def learn_with_stubs(faults, clock, app=None):
    chosen = settings(adamerging={"rounds": 4, "learning-rate": 0.1}, **{"lost-site": "wait"})
    cohort = new_chain(chosen).cohort
    adaptive = app_module("strategies.adaptive_merging").AdaptiveMerging(
        "adamerging", PLAN, cohort, chosen, {}, NoJournal()
    )
    grid = FaultyGrid(app or LearningStub(), NODES, chosen, faults, clock)
    return app_module("strategies.round_by_round").RoundByRound(cohort, adaptive), grid


@pytest.mark.parametrize("seed", range(25))
def test_no_fault_on_the_way_changes_a_bit(seed, clock):
    merges = []
    for faults in (none(), Faults(seed)):
        strategy, grid = learn_with_stubs(faults, clock)
        strategy.play(grid)
        merges.append(strategy.rounds.merged)
    assert merges[0].figures == merges[1].figures
    for layer, update in merges[0].updates.items():
        assert torch.equal(update.dense(), merges[1].updates[layer].dense())


def test_flowers_own_loop_learns_the_same(clock):
    played, grid = learn_with_stubs(none(), clock)
    played.play(grid)
    started, grid = learn_with_stubs(Faults(5, kinds=("error 2", "moved")), clock)
    started.start(grid, ArrayRecord())
    assert started.rounds.merged.figures == played.rounds.merged.figures


@pytest.mark.parametrize("name", ["nan", "infinity", "shape"])
def test_a_gradient_that_cannot_be_added_is_refused(name, clock):
    class Spoiler(LearningStub):
        def spoilt(self, site, gradient):
            if site == "birch":
                gradient[0, 0] = {"nan": float("nan"), "infinity": float("inf")}.get(name, 1.0)
                return gradient[1:] if name == "shape" else gradient
            return gradient

    strategy, grid = learn_with_stubs(none(), clock, Spoiler())
    with pytest.raises(RefusedReplyError, match="birch, asked 3 times"):
        strategy.play(grid)
