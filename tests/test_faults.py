"""Whatever goes wrong on the way: the same bytes, or an error that says what to do."""

import os
from collections import Counter

import pytest

from layerweld.errors import LostSiteError, RefusedReplyError
from layerweld.launch import app_module
from tests.faulty_grid import CORRUPTIONS, KINDS, Clock, Faults, FaultyGrid
from tests.stub_sites import NAMES, StubApp, digest_of, new_chain, settings

CASES = int(os.environ.get("LAYERWELD_FAULT_CASES", "600"))
NODES = [{"name": name} for name in NAMES]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(app_module("strategies.inquiry"), "time", clock)
    monkeypatch.setattr(app_module("strategies.inquiry"), "log", lambda _level, _text: None)
    return clock


def play(faults, clock, method="com", **entries):
    chosen = settings(**entries)
    grid = FaultyGrid(StubApp(), NODES, chosen, faults, clock)
    chain = new_chain(chosen, method)
    chain.play(grid)
    return chain


def none():
    return Faults(seed=0, rate=0.0)


@pytest.mark.parametrize("method", ["com", "regmean++"])
def test_no_fault_on_the_way_changes_a_bit(method, clock):
    whole = digest_of(play(none(), clock, method))
    met, ignored = Counter(), Counter()
    for seed in range(CASES // 2):
        faults = Faults(seed)
        chain = play(faults, clock, method)
        assert digest_of(chain) == whole, f"seed {seed}: {faults.met}"
        met.update(faults.met)
        ignored.update(chain.cohort.ignored)
    print(f"\n{CASES // 2} runs of {method}, {met.total()} faults: {dict(met)}, ignored {ignored}")
    assert {*met} == {*KINDS}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_spoilt_answer_is_refused_before_any_sum_and_asked_for_again(name, clock, monkeypatch):
    grid = app_module("tests.faulty_grid")
    monkeypatch.setattr(grid, "CORRUPTIONS", {name: CORRUPTIONS[name]})
    chain = play(Faults(seed=3, rate=1.0, most=9, kinds=("corrupt",)), clock)
    assert chain.cohort.ignored["refused"] > 0
    assert digest_of(chain) == digest_of(play(none(), clock))
