"""How much one site decides: what it is, what flags it, and what caps it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerweld.errors import RefusedReplyError
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.admission import admit
from layerweld.statistics.influence import capped_scales, opposed, outliers, relative_shift
from layerweld.statistics.pool import GroupPool, GroupSolution
from layerweld.updates.update import DenseUpdate, LowRankUpdate
from tests import test_pool
from tests.pooled_sites import D_IN, GROUP, new_sites, statistics_of


def merge(sites: list[Any], **entries: Any) -> GroupSolution:
    return test_pool.merge(sites, influence=True, **entries)


@pytest.mark.parametrize("products", ["auto", "dense"])
@pytest.mark.parametrize("anchor", ["base", "mean"])
@pytest.mark.parametrize("rank", [0, 1])
def test_influence_is_the_shift_of_a_merge_without_the_site(
    products: str, anchor: str, rank: int
) -> None:
    entries: dict[str, Any] = {
        "products": products,
        "anchor": anchor,
        "ridge": 0.05,
        "shrinkage": 0.9,
    }
    sites = new_sites(4, seed=1)
    whole = merge(sites, **entries)
    chosen = MergeSettings(**entries)
    pool = GroupPool(GROUP, chosen)
    for site in sites:
        pool.add(site.name, statistics_of(site, chosen))
    gram = pool._equations(pool._gram.total(), {}).system.gram
    got = merge(sites, rank=rank, **entries).influence
    assert list(got) == list("abcd")
    for site in sites:
        without = merge([other for other in sites if other is not site], **entries)
        expected = relative_shift(whole.updates, without.updates, gram)
        assert got[site.name] == pytest.approx(expected, rel=1e-4)


def test_a_layer_of_one_site_alone_goes_with_it() -> None:
    sites = new_sites(3, seed=0)
    sites[1:] = [replace(site, updates={"v": site.updates["v"]}) for site in sites[1:]]
    assert merge(sites).influence["a"] > 0.5


def test_sites_that_agree_have_next_to_no_influence() -> None:
    sites = [replace(site, updates=new_sites(1, 0)[0].updates) for site in new_sites(4, seed=0)]
    assert max(merge(sites, ridge=1e-6).influence.values()) < 1e-3


def test_one_site_has_no_influence_to_report() -> None:
    assert merge(new_sites(1, seed=0)).influence == {}
    assert test_pool.merge(new_sites(3, seed=0), influence=False).influence == {}


@pytest.mark.parametrize("factor", [-10.0, 20.0])
def test_a_scaled_or_turned_adapter_is_an_outlier(factor: float) -> None:
    sites = new_sites(4, seed=2)
    updates = {layer: update * factor for layer, update in sites[2].updates.items()}
    sites[2] = replace(sites[2], updates=updates)
    assert outliers(merge(sites).influence) == ("c",)


def with_spike(seed: int, **entries: Any) -> GroupSolution:
    """Four sites, one of which sends the ``G`` of a single token with all entries equal: tr G = 1,
    and no matrix of that trace weighs more."""
    chosen = MergeSettings(**{"max_weight": 0.0} | entries)
    pool = GroupPool(GROUP, chosen)
    for site in new_sites(4, seed):
        tokens = torch.ones(1, D_IN) if site.name == "c" else site.tokens
        pool.add(site.name, statistics_of(replace(site, tokens=tokens), chosen))
    return pool.solve()


def test_a_spike_buys_the_largest_weight_but_is_flagged_only_where_it_moves_the_merge() -> None:
    flagged = set()
    for seed in range(8):
        solution = with_spike(seed)
        others = [weight for site, weight in solution.importance.items() if site != "c"]
        assert solution.importance["c"] == pytest.approx((D_IN - 1) / 2)
        assert solution.importance["c"] > 2 * max(others)
        assert set(outliers(solution.influence)) <= {"c"}
        flagged |= {seed} if outliers(solution.influence) else set()
    assert flagged == {0, 1, 5, 6, 7}  # in the others its one direction hardly carries an update


def test_a_cap_takes_a_spike_down_to_the_share_of_the_others() -> None:
    for seed in range(8):
        weights = with_spike(seed, max_share=0.3).importance  # all have tr G = 1
        assert weights["c"] == pytest.approx(0.3 * sum(weights.values()))


def test_a_spike_weighs_at_most_some_times_the_median_site() -> None:
    for seed in range(8):
        solution = with_spike(seed, max_weight=1.5)
        plain = with_spike(seed).importance
        assert solution.capped.keys() == {"c"}
        assert solution.importance["c"] == pytest.approx(1.5 * sorted(plain.values())[1])
        assert solution.importance["c"] == pytest.approx(solution.capped["c"] * plain["c"])


def agreeing_sites(seed: int) -> list[Any]:
    """Four sites with tokens of their own and nearly the same updates."""
    shared = new_sites(1, seed=100 + seed)[0].updates
    noise = torch.Generator().manual_seed(seed)

    def near(update: Any) -> DenseUpdate:
        dense = update.dense()
        return DenseUpdate(dense + 0.1 * torch.randn(dense.shape, generator=noise))

    sites = new_sites(4, seed)
    return [replace(s, updates={layer: near(u) for layer, u in shared.items()}) for s in sites]


def test_a_turned_update_of_honest_size_is_no_outlier_but_opposes_the_others() -> None:
    for seed in range(8):
        sites = agreeing_sites(seed)
        honest = merge(sites)
        assert honest.residual < 0.05  # one layer reproduces updates that agree
        assert min(honest.agreement.values()) > 0.9
        assert opposed(honest.agreement) == ()
        turned = {layer: update * -1.0 for layer, update in sites[2].updates.items()}
        solution = merge([*sites[:2], replace(sites[2], updates=turned), sites[3]])
        assert outliers(solution.influence) == ()  # without any of them the merge moves as much
        assert solution.residual > 0.3
        assert opposed(solution.agreement) == ("c",)


def test_a_product_stands_for_the_smallest_update_that_has_it() -> None:
    # with as many tokens as it takes, the update itself
    for site in new_sites(4, seed=0):
        statistics = statistics_of(site, MergeSettings())
        found = admit(site.name, statistics, GROUP, MergeSettings()).magnitude
        own = [update.dense().double() for update in site.updates.values()]
        gram = statistics.gram.double()
        energy = sum(float((u @ gram * u).sum()) for u in own)
        assert found.energy == pytest.approx(energy, rel=1e-3)
        assert found.square == pytest.approx(sum(float(u.square().sum()) for u in own), rel=1e-2)


def test_honest_sites_are_no_outliers() -> None:
    for seed in range(5):
        assert outliers(merge(new_sites(4, seed)).influence) == ()


def test_of_two_sites_neither_is_an_outlier() -> None:
    assert outliers({"a": 1e-3, "b": 10.0}) == ()


@given(
    masses=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8),
    share=st.floats(0.01, 1.0),
)
def test_no_site_has_more_than_the_share_or_all_are_equal(masses: Any, share: float) -> None:
    named = {str(i): mass for i, mass in enumerate(masses)}
    scales = capped_scales(named, share)
    left = {site: scales[site] * mass for site, mass in named.items()}
    assert all(0 < scale <= 1 for scale in scales.values())
    largest, total = max(left.values()), sum(left.values())
    equal = largest <= min(left.values()) * (1 + 1e-9)
    assert largest <= share * total * (1 + 1e-9) or equal


def test_a_cap_of_one_changes_nothing_and_a_small_one_makes_all_equal() -> None:
    masses = {"a": 1.0, "b": 5.0, "c": 0.0}
    assert capped_scales(masses, 1.0) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert capped_scales({"a": 1.0, "b": 4.0}, 0.1) == {"a": 1.0, "b": 0.25}


def test_without_a_cap_scaled_activations_buy_weight_and_with_one_they_do_not() -> None:
    # normalization none: 10 times the activations are 10⁴ times the weight.
    honest = new_sites(4, seed=3)
    loud = [*honest[:3], replace(honest[3], tokens=10 * honest[3].tokens)]
    plain = merge(loud, normalization="none", max_weight=0.0)
    assert plain.importance["d"] > 50 * plain.importance["a"]
    capped = merge(loud, normalization="none", max_share=0.4)
    assert outliers(plain.influence) == ("d",)
    assert outliers(capped.influence) == ()
    assert outliers(merge(loud, normalization="none", max_weight=3.0).influence) == ()


@pytest.mark.parametrize("products", ["auto", "dense"])
def test_a_capped_merge_is_the_merge_with_the_lower_weight(products: str) -> None:
    sites = new_sites(3, seed=4)
    entries: dict[str, Any] = {"normalization": "none", "products": products, "ridge": 0.1}
    chosen = MergeSettings(**entries, max_share=0.35)
    pool = GroupPool(GROUP, chosen)
    for site in sites:
        pool.add(site.name, statistics_of(site, chosen))
    solution = pool.solve()
    grams = {s.name: statistics_of(s, chosen).gram.double() for s in sites}
    weights = solution.importance
    s = torch.stack([weights[name] * gram for name, gram in grams.items()]).sum(dim=0)
    own = {site.name: site.updates["q"].dense().double() for site in sites}
    r = sum(weights[name] * own[name] @ gram for name, gram in grams.items())
    system = s + 0.1 * s.trace() / len(s) * torch.eye(len(s), dtype=torch.float64)
    expected = torch.linalg.solve(system, r.T).T
    got = solution.updates["q"].dense().double()
    assert float((got - expected).norm() / expected.norm()) < 1e-5
    shares = [weights[name] * float(gram.trace()) for name, gram in grams.items()]
    assert max(shares) <= 0.35 * sum(shares) * (1 + 1e-6)


def test_a_silent_feature_cannot_carry_an_update() -> None:
    chosen = MergeSettings(normalization="none")
    (site,) = new_sites(1, seed=0)
    tokens = site.tokens.clone()
    tokens[:, 0] = 0
    statistics = statistics_of(replace(site, tokens=tokens), chosen)
    product = statistics.products["q"]
    right = product.moments.right.clone()  # type: ignore[attr-defined]
    right[:, 0] = 0.1
    other = replace(product, moments=replace(product.moments, right=right))  # type: ignore[type-var]
    spoilt = {**statistics.products, "q": other}
    with pytest.raises(RefusedReplyError, match="q: features that never fire carry a part"):
        GroupPool(GROUP, chosen).add("a", replace(statistics, products=spoilt))
    GroupPool(GROUP, chosen).add("a", statistics)


def test_dense_and_factored_updates_shift_alike() -> None:
    torch.manual_seed(0)
    factored = LowRankUpdate(torch.randn(3, 2), torch.randn(2, 4))
    other = LowRankUpdate(torch.randn(3, 1), torch.randn(1, 4))
    gram = torch.eye(4, dtype=torch.float64)
    dense = relative_shift(
        {"q": DenseUpdate(factored.dense())}, {"q": DenseUpdate(other.dense())}, gram
    )
    assert relative_shift({"q": factored}, {"q": other}, gram) == pytest.approx(dense, rel=1e-5)
