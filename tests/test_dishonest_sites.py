"""Whole runs with a site that lies: they end by its name, or go on as if it had been silent."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from layerweld.errors import RefusedReplyError, UnusableMergeError
from layerweld.merging.fisher import Fisher, implied_update, normalised, problem_with
from layerweld.merging.registry import METHODS
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.checks import check_statistics
from layerweld.statistics.pool import GroupPool
from layerweld.transport.arrays import to_arrays
from layerweld.transport.statistics import StatisticsReply
from layerweld.updates.named_tensors import update_tensors
from layerweld.updates.proportion import OutOfProportionError, Part, refuse_parts_out_of_proportion
from layerweld.updates.update import DenseUpdate, LowRankUpdate
from strategies.by_method import rounds_of
from strategies.merge_strategy import MergeStrategy
from tests.faulty_grid import Clock, FaultyGrid, none
from tests.pooled_sites import GROUP, new_sites, statistics_of
from tests.stub_sites import (
    NODES,
    PLAN,
    MemoryJournal,
    StubApp,
    digest_of,
    new_chain,
    settings,
    step_of,
    updates_of,
)
from tests.test_faults import raises, run_without

pytestmark = pytest.mark.usefixtures("one_thread")

GOES_ON: dict[str, Any] = {"lost-site": "continue", "deadline": 60.0}


class ScalingApp(StubApp):
    """One site's product is many times too large, from a step on."""

    def __init__(self, factor: float, step: int = 0) -> None:
        super().__init__()
        self.factor, self.step = factor, step

    def reply(self, name: str, message: Message) -> StatisticsReply:
        reply = super().reply(name, message)
        if name != "birch" or step_of(message) < self.step:
            return reply
        return replace(reply, statistics=tuple(map(self.lie, reply.statistics)))

    def lie(self, one: Any) -> Any:
        lied = {k: replace(p, moments=p.moments * self.factor) for k, p in one.products.items()}
        return replace(one, products=lied)


def run_chain(app: ScalingApp, clock: Clock, method: str = "com", **entries: Any) -> Any:
    chosen = settings(**entries)
    chain = new_chain(chosen, method)
    chain.run(FaultyGrid(app, NODES, chosen, none(), clock))
    return chain


@pytest.mark.parametrize("method", ["com", "regmean++"])
def test_a_site_out_of_proportion_ends_the_chain_by_name_and_nothing_of_it_is_kept(
    method: str, clock: Clock
) -> None:
    chosen, journal = settings(), MemoryJournal()
    chain = new_chain(chosen, method, journal=journal)
    with pytest.raises(OutOfProportionError, match=r"birch: .* times as large as the median"):
        chain.run(FaultyGrid(ScalingApp(1e3, step=1), NODES, chosen, none(), clock))
    assert [kept.index for kept in journal.rounds] == [0]


@pytest.mark.parametrize("method", ["com", "regmean++"])
@pytest.mark.parametrize("step", [0, 1])
def test_a_run_that_may_go_on_does_so_without_the_site_as_if_it_had_been_silent(
    method: Any, step: int, clock: Clock
) -> None:
    dishonest = run_chain(ScalingApp(1e3, step), clock, method, **GOES_ON)
    silent = run_without(clock, raises, step, method, **GOES_ON)
    assert digest_of(dishonest) == digest_of(silent)
    assert "birch" in dishonest.cohort.lost


def test_flowers_own_start_goes_on_without_the_site_too(clock: Clock) -> None:
    from flwr.app import ArrayRecord

    chosen = settings(**GOES_ON)
    chain = new_chain(chosen)
    chain.start(FaultyGrid(ScalingApp(1e3), NODES, chosen, none(), clock), ArrayRecord())
    assert digest_of(chain) == digest_of(run_chain(ScalingApp(1e3), clock, **GOES_ON))


def run_updates(
    change: Callable[..., dict[Any, Any]],
    clock: Clock,
    merging: str = "mean",
    **entries: Any,
) -> MergeStrategy:
    """A method of updates over three sites, one of which changes its updates first."""

    class Liar(StubApp):
        def __call__(self, message: Message, context: Any) -> Message:
            if context.node_config["name"] != "birch":
                return super().__call__(message, context)
            sent = to_arrays(update_tensors(change(updates_of("birch"))))
            reply = super().__call__(message, context)
            reply.content["updates"] = sent
            return reply

    chosen = settings(**entries)
    cohort = new_chain(chosen).cohort
    rounds = rounds_of(METHODS[merging], PLAN, cohort, chosen, {})
    grid = FaultyGrid(Liar(), NODES, chosen, none(), clock)
    strategy = MergeStrategy(cohort, rounds)
    strategy.run(grid)
    return strategy


def every(
    factor_left: float = 1.0, factor_right: float = 1.0, only: str = ""
) -> Callable[..., dict[Any, Any]]:
    def change(updates: Any) -> dict[Any, Any]:
        return {
            layer: LowRankUpdate(u.left * factor_left, u.right * factor_right)
            if not only or layer == only
            else u
            for layer, u in updates.items()
        }

    return change


TOO_LARGE = {
    "all layers": every(1e3),
    "one layer": every(1e3, only="1.q"),
    "lora_alpha": every(2e4),
    "at the bound": every(3e3, 3e3),
    "infinite product": every(3e37, 3e37),
    "nothing times everything": every(0.0, 3e38),
}


@pytest.mark.parametrize("change", TOO_LARGE.values(), ids=TOO_LARGE)
def test_an_update_out_of_proportion_ends_the_run_by_name(change: Any, clock: Clock) -> None:
    with pytest.raises(RefusedReplyError, match="birch"):
        run_updates(change, clock)


@pytest.mark.parametrize("change", TOO_LARGE.values(), ids=TOO_LARGE)
def test_or_it_goes_on_without_the_site(change: Any, clock: Clock) -> None:
    merged = run_updates(change, clock, **GOES_ON).rounds.outcome().updates
    for layer, update in merged.items():
        mean = sum(updates_of(site)[layer].dense() for site in ("ash", "cedar")) / 2
        torch.testing.assert_close(update.dense(), mean)


def test_factors_that_are_averaged_apart_are_in_proportion_apart(clock: Clock) -> None:
    same = every(100.0, 0.01)  # the same product
    assert run_updates(same, clock).rounds.outcome().updates
    shared = every(100.0, 0.01)

    def of_one_rank(updates: Any) -> dict[Any, Any]:
        return {k: LowRankUpdate(u.left, u.right) for k, u in shared(updates).items()}

    with pytest.raises(RefusedReplyError, match=r"birch: its factor of .* times as large"):
        run_updates(of_one_rank, clock, "fedit")


def test_a_part_that_others_hardly_changed_is_no_reason_to_refuse_a_site() -> None:
    parts = {"norm": Part(1e-9, 10), "embedding": Part(1.0, 1000)}
    sites = {name: dict(parts) for name in ("ash", "birch", "cedar")}
    sites["ash"]["norm"] = Part(0.5, 10)
    refuse_parts_out_of_proportion(sites, 30.0, "what changed")
    sites["ash"]["norm"] = Part(4e12, 10)
    with pytest.raises(OutOfProportionError, match=r"ash: what changed of 'norm' is .* times"):
        refuse_parts_out_of_proportion(sites, 30.0, "what changed")


def test_a_part_that_one_site_alone_changed_is_measured_by_the_others_usual_size() -> None:
    sites = {name: {"q": Part(1.0, 100)} for name in ("ash", "birch", "cedar")}
    sites["ash"]["norm"] = Part(50.0, 100)
    with pytest.raises(OutOfProportionError, match="ash: what changed of 'norm' is 50 times"):
        refuse_parts_out_of_proportion(sites, 30.0, "what changed")


@pytest.mark.parametrize("others", [1, 2, 3, 10])
@pytest.mark.parametrize("factor", [0.01, 1.0, 29.0, 31.0])
def test_proportion_is_to_the_median_of_the_others_however_many_there_are(
    others: int, factor: float
) -> None:
    sizes = [1.0 + 0.001 * k for k in range(others)]
    usual = sorted(sizes)
    middle = (usual[(others - 1) // 2] + usual[others // 2]) / 2
    sites = {f"site-{k}": {"q": Part(size, 4)} for k, size in enumerate(sizes)}
    sites["liar"] = {"q": Part(factor * middle, 4)}
    if factor < 30 and (others > 1 or factor > 1 / 30):
        refuse_parts_out_of_proportion(sites, 30.0, "it")
        return
    with pytest.raises(OutOfProportionError) as refused:
        refuse_parts_out_of_proportion(sites, 30.0, "it")
    assert refused.value.reasons.keys() == ({"liar"} if factor > 1 else {"site-0"})  # of two


def fisher_of(seed: int) -> dict[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    found = normalised({"q": torch.rand(4, 3, generator=generator) ** 8})
    return {layer: values.clamp(min=Fisher().floor) for layer, values in found.items()}


@pytest.mark.parametrize("seed", range(20))
def test_honest_importances_have_no_problem(seed: int) -> None:
    assert problem_with(fisher_of(seed), Fisher().floor) == ""
    assert problem_with({"q": torch.full((4, 3), Fisher().floor)}, Fisher().floor) == ""


@pytest.mark.parametrize("value", [1e-20, 0.0, -1.0, float("nan"), float("inf"), 4e12, 1e38])
def test_importances_that_no_site_has_are_named(value: Any) -> None:
    importance = fisher_of(0)
    importance["q"][0, 0] = value
    assert problem_with(importance, Fisher().floor)


def test_a_fisher_sum_stands_for_an_update() -> None:
    importance, update = fisher_of(1)["q"], torch.randn(4, 3)
    torch.testing.assert_close(implied_update(importance, importance * update), update)
    nothing, something = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert implied_update(nothing, something).tolist() == [[0.0, float("inf")]]


def test_a_solution_that_no_model_can_use_is_an_error_that_names_the_largest_factors() -> None:
    chosen = MergeSettings()
    pool = GroupPool(GROUP, chosen)
    for site, size in zip(new_sites(3, seed=0), (1.0, 5.0, 2.0), strict=True):
        grown = {layer: update * size for layer, update in site.updates.items()}
        pool.add(site.name, statistics_of(replace(site, updates=grown), chosen))
    for value in (float("nan"), float("inf"), 1e5):
        with pytest.raises(UnusableMergeError, match=r"no model can use it.* those of b"):
            pool._require_usable({"q": DenseUpdate(torch.full((2, 2), value))})


def cancelling(update: Any, size: float) -> LowRankUpdate:
    """Factors of this size whose product is next to nothing."""
    left = torch.cat([update.left, 3 * update.left], dim=1) * size
    return LowRankUpdate(left, torch.cat([3 * update.right, -update.right]))


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("iterations", [0, 100])
@pytest.mark.parametrize("anchor", ["base", "mean"])
def test_factors_that_cancel_are_refused(size: float, iterations: int, anchor: Any) -> None:
    chosen = MergeSettings(anchor=anchor)
    for site in new_sites(4, seed=1):
        liar = {layer: cancelling(update, size) for layer, update in site.updates.items()}
        lied = statistics_of(replace(site, updates=liar), chosen)
        with pytest.raises(RefusedReplyError, match=r"factors cancel|beyond 32768"):
            GroupPool(GROUP, chosen, iterations).add("a", lied)
        GroupPool(GROUP, chosen, iterations).add("a", statistics_of(site, chosen))


def test_an_update_in_directions_that_no_token_excites_is_bounded_where_the_anchor_needs_it() -> (
    None
):
    chosen = MergeSettings(anchor="mean")
    sites = new_sites(4, seed=0, num_tokens=2)
    pool = GroupPool(GROUP, chosen)
    for site in sites:
        statistics = statistics_of(site, chosen)
        if site.name == "b":
            silent = torch.linalg.eigh(statistics.gram.double())[1][:, 0].float()
            lied = {k: replace(p, own=p.own + 1e3 * silent) for k, p in statistics.products.items()}
            statistics = replace(statistics, products=lied)
        pool.add(site.name, statistics)
    with pytest.raises(OutOfProportionError, match=r"^b: the update behind"):
        pool.solve()


def test_a_group_of_two_among_more_sites_evicts_nobody() -> None:
    chosen = MergeSettings()
    for size in (1e-9, 1e-3, 1e3):
        pool = GroupPool(GROUP, chosen)
        for site in new_sites(4, seed=0):
            grown = {"a": 1.0, "b": size, "c": 0.0, "d": 0.0}[site.name]
            updates = {layer: update * grown for layer, update in site.updates.items()}
            pool.add(site.name, statistics_of(replace(site, updates=updates), chosen))
        assert pool.solve().updates


@given(
    seed=st.integers(0, 2**16),
    rank=st.integers(1, 6),
    scale=st.floats(-30, 8),
    alike=st.floats(-1, 1),
)
def test_whatever_factors_are_sent_nothing_is_less_than_nothing(
    seed: int, rank: int, scale: float, alike: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(4, rank, generator=generator),
        torch.randn(rank, 6, generator=generator),
    )
    left[:, -1], right[-1] = alike * left[:, 0], -right[0]  # they may cancel, in part or wholly
    site = replace(new_sites(1, seed=0)[0], updates={"q": LowRankUpdate(left * 2.0**scale, right)})
    statistics = statistics_of(site, MergeSettings())
    factor = check_statistics(statistics, 6, "token")
    product = statistics.products["q"].moments
    found = factor.magnitude(product, factor.implied_update(product))
    assert found.energy >= 0
    assert found.square >= 0
    others = {s.name: statistics_of(s, MergeSettings()) for s in new_sites(3, seed=1)[1:]}
    pool = GroupPool(GROUP, MergeSettings(max_size=1e9))
    try:
        pool.add("a", statistics)
    except RefusedReplyError:
        return
    for name, other in others.items():
        pool.add(name, other)
    solution = pool.solve()
    assert 0 <= solution.residual < 1.5
    assert all(-1.01 <= cosine <= 1.01 for cosine in solution.agreement.values())
