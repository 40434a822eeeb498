"""What a site says of its factors and what it sends are one thing, or the run knows who lied."""

import random
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict

from layerweld.errors import CohortError, RefusedReplyError
from layerweld.merging.registry import METHODS
from layerweld.statistics.group import Product
from layerweld.transport.identity import Identity, with_identity
from layerweld.transport.site_info import SiteInfo, encode_site_info
from layerweld.transport.statistics import StatisticsReply
from layerweld.transport.updates import encode_updates
from layerweld.updates.shared_factor import digest_of_draw, digest_of_factors
from layerweld.updates.update import DenseUpdate, LowRankUpdate
from server.handshake import read_trained
from strategies.by_method import rounds_of
from strategies.merge_strategy import MergeStrategy
from tests.faulty_grid import Clock, FaultyGrid, none
from tests.stub_sites import (
    NAMES,
    NODES,
    PLAN,
    StubApp,
    digest_of,
    new_chain,
    reply_with,
    settings,
    site_info_of,
)
from tests.test_faults import raises, run_without

pytestmark = pytest.mark.usefixtures("one_thread")

GOES_ON: dict[str, Any] = {"lost-site": "continue", "deadline": 60.0}
DRAWN = digest_of_draw(0, 2, PLAN.layer_names)


def sharing(name: str) -> dict[Any, Any]:
    """Updates of rank 2 behind one ``A``."""
    one, own = torch.Generator().manual_seed(9), torch.Generator().manual_seed(NAMES.index(name))
    return {
        s.name: LowRankUpdate(
            torch.randn(s.d_out, 2, generator=own), torch.randn(2, g.d_in, generator=one)
        )
        for g in PLAN.groups
        for s in g.layers
    }


def another_a(updates: dict[Any, Any], draw: Random) -> dict[Any, Any]:
    """Any change of any of the ``A``: the last bit of one number, two rows, a whole layer."""
    layer = draw.choice(sorted(updates))
    right = updates[layer].right.clone()
    how = draw.choice(("bit", "rows", "sign", "anew"))
    if how == "bit":
        entry = draw.randrange(right.numel())
        right.view(-1)[entry] = torch.nextafter(right.view(-1)[entry], torch.tensor(9.0))
    elif how == "rows":
        right = right.flip(0)
    elif how == "sign":
        right = -right
    else:
        right = torch.randn(
            right.shape, generator=torch.Generator().manual_seed(draw.randrange(2**32))
        )
    return {**updates, layer: LowRankUpdate(updates[layer].left, right)}


def run(
    sent: dict[str, dict[Any, Any]],
    claimed: dict[str, str] | dict[Any, Any],
    clock: Clock,
    method: str,
    **entries: Any,
) -> MergeStrategy:
    """A method of updates over the sites that send something."""

    class Sites(StubApp):
        def __call__(self, message: Message, context: Any) -> Message:
            return reply_with(encode_updates(sent[context.node_config["name"]]), message, context)

    chosen = settings(**entries)
    cohort = new_chain(chosen).cohort
    for name, factors in claimed.items():
        ranks = (2,) * len(PLAN.layer_names)
        cohort.site_infos[name] = replace(site_info_of(name), ranks=ranks, factors=factors)
    merging = rounds_of(METHODS[method], PLAN, cohort, chosen, {})
    grid = FaultyGrid(Sites(), NODES, chosen, none(), clock)
    strategy = MergeStrategy(cohort, merging)
    strategy.run(grid)
    return strategy


@pytest.mark.parametrize("seed", range(12))
def test_a_site_that_sends_another_a_than_it_claims_is_refused_by_name(
    seed: int, clock: Clock
) -> None:
    draw = random.Random(seed)
    liar, method = draw.choice(NAMES), draw.choice(("ffa-lora", "flora", "mean"))
    honest = {name: sharing(name) for name in NAMES}
    sent = {**honest, liar: another_a(honest[liar], draw)}
    claimed = {name: digest_of_factors(honest[name]) for name in NAMES}
    with pytest.raises(RefusedReplyError, match=f"^{liar}, .*: the A of its LoRA is not the one"):
        run(sent, claimed, clock, method)
    lacking = run(sent, claimed, clock, method, **GOES_ON)
    assert lacking.cohort.lost.keys() == {liar}
    assert_merged(lacking, honest, liar)


@pytest.mark.parametrize("seed", range(12))
def test_where_a_is_drawn_the_site_that_drew_another_is_the_one_left_out(
    seed: int, clock: Clock
) -> None:
    draw = random.Random(seed)
    liar, honest = draw.choice(NAMES), {name: sharing(name) for name in NAMES}
    sent = {**honest, liar: another_a(honest[liar], draw)}
    claimed = dict.fromkeys(NAMES, DRAWN)
    with pytest.raises(RefusedReplyError, match=f"^{liar}: its frozen A is another than that of"):
        run(sent, claimed, clock, "ffa-lora")
    lacking = run(sent, claimed, clock, "ffa-lora", **GOES_ON)
    assert lacking.cohort.lost.keys() == {liar}
    assert_merged(lacking, honest, liar)


def assert_merged(merging: Any, honest: dict[str, dict[Any, Any]], liar: str) -> None:
    left = [honest[name] for name in NAMES if name != liar]
    for layer, update in merging.rounds.outcome().updates.items():
        mean = sum(of[layer].dense() for of in left) / len(left)
        torch.testing.assert_close(update.dense(), mean)


def test_where_all_drew_different_ones_nobody_is_to_blame(clock: Clock) -> None:
    sent = {name: another_a(sharing(name), random.Random(k)) for k, name in enumerate(NAMES)}
    with pytest.raises(CohortError, match=r"one frozen A .* ash, birch, cedar sent different ones"):
        run(sent, dict.fromkeys(NAMES, DRAWN), clock, "ffa-lora", **GOES_ON)


def test_what_is_not_shared_is_nobodys_business_in_another_method(clock: Clock) -> None:
    sent = {name: another_a(sharing(name), random.Random(k)) for k, name in enumerate(NAMES)}
    claimed = {name: digest_of_factors(sent[name]) for name in NAMES}
    assert not run(sent, claimed, clock, "flora").cohort.lost
    assert not run(sent, dict.fromkeys(NAMES, ""), clock, "flora").cohort.lost


def test_whole_layers_have_no_factors() -> None:
    updates = sharing("ash")
    assert len(digest_of_factors(updates)) == 64
    assert digest_of_factors({**updates, "0.q": DenseUpdate(updates["0.q"].dense())}) == ""


class WholeLayers(StubApp):
    """One site sends products of whole layers, and came past the handshake with ranks of 0."""

    def __init__(self, liar: Any) -> None:
        super().__init__()
        self.liar = liar

    def reply(self, name: str, message: Message) -> Any:
        reply = super().reply(name, message)
        return self.dense(reply) if name == self.liar else reply

    @staticmethod
    def dense(reply: StatisticsReply) -> StatisticsReply:
        def whole(one: Any) -> Any:
            moments = {k: DenseUpdate(p.moments.dense()) for k, p in one.products.items()}
            return replace(one, products={k: Product(m) for k, m in moments.items()})

        return replace(reply, statistics=tuple(map(whole, reply.statistics)))


@pytest.mark.parametrize("liar", NAMES)
def test_who_comes_first_does_not_fix_the_form_of_the_sums(liar: Any, clock: Clock) -> None:
    chosen = settings(**GOES_ON)
    chain = new_chain(chosen)
    nothing = (0,) * len(PLAN.layer_names)
    chain.cohort.site_infos[liar] = replace(site_info_of(liar), ranks=nothing)
    chain.run(FaultyGrid(WholeLayers(liar), NODES, chosen, none(), clock))
    assert chain.cohort.lost.keys() == {liar}
    if liar == "birch":
        assert digest_of(chain) == digest_of(run_without(clock, raises, 0, **GOES_ON))


TRAINED = {
    "a whole model": {"kind": "full", "ranks": (0,) * len(PLAN.layer_names)},
    "fewer layers": {"layers": PLAN.layer_names[1:], "ranks": (1,) * 4},
    "layers twice": {"layers": PLAN.layer_names * 2, "ranks": (1,) * 10},
    "other ranks": {"ranks": (1, 1, 2, 1, 1)},
    "too few ranks": {"ranks": (1,)},
}


def content_of(site_info: SiteInfo) -> RecordDict:
    identity = Identity("run", "id", node="1", site=site_info.site)
    return with_identity(encode_site_info(site_info), identity)


@pytest.mark.parametrize("changes", TRAINED.values(), ids=TRAINED)
def test_what_fine_tuning_makes_is_what_the_methods_were_chosen_for(changes: Any) -> None:
    before, trained = replace(site_info_of("ash"), kind="none"), site_info_of("ash")
    assert read_trained(content_of(trained), before) == trained
    with pytest.raises(RefusedReplyError, match="not have a LoRA of the layers and ranks"):
        read_trained(content_of(replace(trained, **changes)), before)
